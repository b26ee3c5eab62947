"""The simulation tests fail on each seeded fault, and pass without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.support.seeded_faults import FAULTS, RELAY, ROOT, WORKER, Fault

NAMES = ["none", *(fault.name for fault in FAULTS)]
PARTS = 4
"""Parts of the list, which pytest-xdist runs in parallel."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_that_a_fault_replaces_occurs_once(fault: Fault):
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old


def test_each_core_has_its_faults_and_each_fault_its_rule():
    assert len({fault.name for fault in FAULTS}) == len({fault.rule for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.file == RELAY for fault in FAULTS) >= 4
    assert sum(fault.file == WORKER for fault in FAULTS) >= 6


@pytest.mark.parametrize("names", [NAMES[part::PARTS] for part in range(PARTS)], ids=range(PARTS))
def test_the_simulation_tests_fail_on_each_fault_and_pass_without_one(names: Sequence[str]):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.seeded_faults", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(names)
