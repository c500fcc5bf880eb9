"""Compare many RoI Align settings over one backbone pass, each against the exact integral."""
