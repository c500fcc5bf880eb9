"""Interfaces to the operating system: allocator, devices, file threads, atomic replacement, signals, standard output."""
