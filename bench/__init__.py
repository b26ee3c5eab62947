"""What the daemon costs, beside the same work without it, both in one run; `scripts/bench` starts it."""
