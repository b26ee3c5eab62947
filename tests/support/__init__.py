"""Code shared by tests: daemons, samples, and generators of tables in the documentation."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
TESTS = ROOT / "tests"
