"""Chaos tests (`scripts/chaos`): cause faults in a real daemon, and check its promises about each."""
