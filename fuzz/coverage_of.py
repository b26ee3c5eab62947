"""Branch coverage of the parsers and cores by the harnesses, measured on a sample of inputs with coverage.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PARTS: Final[Mapping[str, str]] = {
    "protocol": "axon_zmq/protocol/",
    "broker core": "axon_zmq/broker/core/",
    "worker core": "axon_zmq/worker/core/",
    "client core": "axon_zmq/client/core.py",
}
"""Parts of the package by prefix of the path."""
GOAL: Final = 0.85
"""Lowest accepted branch coverage of all parts together."""
_CONFIG: Final = """[run]
branch = true
source = axon_zmq
data_file = {folder}/data
[report]
exclude_also =
    if TYPE_CHECKING:
    def __repr__
"""
# `__repr__` is for people who debug, and no input reaches it.


def measure(inputs: int, seed: int) -> dict[str, tuple[int, int]]:
    """Run inputs in a separate process with coverage.py.

    Returns:
        For each part, the number of branches that were taken and of all branches.
    """
    with TemporaryDirectory(prefix="axon-fuzz-") as folder:
        config = Path(folder) / "rc"
        config.write_text(_CONFIG.format(folder=folder), encoding="utf-8")
        run = ["-m", "coverage", "run", f"--rcfile={config}", "-m", "fuzz", "run"]
        options = [f"--inputs={inputs}", f"--seed={seed}", "--processes=0", "--no-coverage"]
        subprocess.run([sys.executable, *run, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        report = Path(folder) / "report.json"
        made = [sys.executable, "-m", "coverage", "json", f"--rcfile={config}", "-q", "-o", str(report)]
        subprocess.run(made, cwd=ROOT, check=True)
        files = json.loads(report.read_text(encoding="utf-8"))["files"]
    return {
        name: (
            sum(each["summary"]["covered_branches"] for path, each in files.items() if path.startswith(prefix)),
            sum(each["summary"]["num_branches"] for path, each in files.items() if path.startswith(prefix)),
        )
        for name, prefix in PARTS.items()
    }


def table(parts: Mapping[str, tuple[int, int]]) -> tuple[str, float]:
    """Return one line with the coverage of each part and of all together, and the latter as a number from 0 to 1."""
    taken, total = (sum(each[index] for each in parts.values()) for index in (0, 1))
    share = taken / max(1, total)
    texts = [f"{name} {part[0] / max(1, part[1]):.0%} of {part[1]}" for name, part in parts.items()]
    return f"branch coverage: {share:.0%} of {total} ({', '.join(texts)})", share
