"""The benchmark: cost of the daemon, compared with the same work done without it; `scripts/bench` starts it."""
