"""The broker core: all decisions of the broker, without I/O."""
