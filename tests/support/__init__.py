"""What tests share: a daemon to start, samples, generators of the documentation's tables."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
TESTS = ROOT / "tests"
