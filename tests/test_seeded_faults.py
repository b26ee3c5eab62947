"""The simulation tests fail on each seeded fault, and pass without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.seeded_faults import FAULTS, RELAY, ROOT, WORKER, Fault, seed

PARTS = 4
"""Of the list: pytest-xdist runs them side by side."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_that_a_fault_replaces_is_there_once(fault: Fault):
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old


def test_each_core_has_its_faults_and_each_fault_its_name():
    assert len({fault.name for fault in FAULTS}) == len({fault.rule for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.file == RELAY for fault in FAULTS) >= 4
    assert sum(fault.file == WORKER for fault in FAULTS) >= 6


def test_the_simulation_tests_pass_without_a_fault_and_use_the_copy(tmp_path: Path):
    outcome = seed(None, tmp_path)
    assert outcome.failed is None, outcome.output
    (tmp_path / "axon_zmq/testing/simulation.py").unlink()
    with pytest.raises(AssertionError, match="simulation"):
        seed_again = __import__("tests.seeded_faults", fromlist=["simulate"]).simulate
        seed_again(tmp_path)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_simulation_tests_fail_on_each_fault(part: int, tmp_path: Path):
    for fault in FAULTS[part::PARTS]:
        outcome = seed(fault, tmp_path / fault.name)
        assert outcome.failed is not None, f"{fault.name}: {fault.rule}"
