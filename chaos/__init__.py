"""Faults put upon a real daemon, and what it promises about each, measured: `scripts/chaos`."""
