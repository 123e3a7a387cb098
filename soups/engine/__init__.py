"""What computes mixtures: all cores within a limit of memory, from files to files, or into a live model."""
