"""RoI Align on the CPU: the compiled kernel, and how a call is split over threads."""
