"""Ablations: many RoI Align settings over one backbone pass, each measured against the exact integral."""
