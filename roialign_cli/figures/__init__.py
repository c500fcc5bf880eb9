"""Figures: an image with its boxes, bins and samples; the arithmetic of one RoI; a contact sheet of a feature file."""
