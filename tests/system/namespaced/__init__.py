"""Tests that cut a cable: they take the loopback interface down, so they run in a separate network namespace.

`tests/system/test_cable_cut.py` starts them there; pytest does not collect them by itself.
"""
