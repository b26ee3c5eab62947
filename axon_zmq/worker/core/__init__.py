"""The worker core: all decisions of the worker, without I/O."""
