"""A run on a Ray cluster, and simulated ones."""
