"""The worker's decisions, without I/O: events and the time in, effects out."""
