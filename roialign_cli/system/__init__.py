"""The operating system: memory allocator, devices, threads for files, atomic replacement, signals and standard output."""
