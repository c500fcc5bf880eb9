"""Readers of box files, one per format; all return a BoxTable."""
