"""Tests that cut a cable: they take the loopback down, so they run in a network namespace of their own.

`tests/system/test_cable_cut.py` starts them there; pytest does not collect them by itself.
"""
