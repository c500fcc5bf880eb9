"""RoI Align on CUDA devices: the bundled kernel, compiled at run time for the device at hand."""
