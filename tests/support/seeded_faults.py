"""Seeded faults: proof that the simulation tests cover the rules of the relay and of the worker core.

Each fault breaks one rule in a copy of the package; `tests/unit/testing/test_simulation.py` must fail on it, and pass
on an unmodified copy. `python -m tests.support.seeded_faults` prints which test catches which fault;
`tests/system/test_seeded_faults.py` runs the same in CI. The named histories run first, because they take a second;
only a fault that passes them all needs the random histories of the state machine.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import hypothesis.stateful  # noqa: F401  # pyright: ignore[reportUnusedImport]
import pytest

from tests.support import ROOT

RELAY: Final = "axon_zmq/broker/core/relay.py"
WORKER: Final = "axon_zmq/worker/core/worker.py"
SLOTS: Final = "axon_zmq/worker/core/concurrency.py"
WORLD: Final = "tests/unit/testing/test_simulation.py"
STAGES: Final[Sequence[str]] = ("not TestWorld", "TestWorld")
"""pytest's `-k` expressions for the named histories and for the state machine."""


class Fault(NamedTuple):
    """A change that breaks one rule."""

    name: str
    rule: str
    file: str
    old: str
    """Text that occurs once in the file."""
    new: str


class Outcome(NamedTuple):
    """The result of the simulation tests for a copy of the package."""

    failed: str | None
    """The first test that failed; None if all passed."""
    seconds: float


FAULTS: Final[Sequence[Fault]] = (
    Fault(
        "lost-worker-relayed",
        "late messages of a lost worker are dropped",
        RELAY,
        "if worker in self._lost or (self._disowned and",
        "if (self._disowned and",
    ),
    Fault(
        "disowned-run-relayed",
        "messages about a disowned run are dropped",
        RELAY,
        "        if entry not in self._disowned:\n            return False\n",
        "        if entry not in self._disowned or kind not in TERMINAL_KINDS:\n            return False\n",
    ),
    Fault(
        "disowned-terminal-relayed",
        "the terminal message of a disowned run is dropped, too",
        RELAY,
        "            self._disowned.discard(entry)\n        return True\n",
        "            self._disowned.discard(entry)\n            return False\n        return True\n",
    ),
    Fault(
        "disowned-for-ever",
        "a run is disowned up to its terminal message, and no longer",
        RELAY,
        "            self._disowned.discard(entry)\n",
        "            pass\n",
    ),
    Fault(
        "relayed-run-restarted",
        "a run of which a message was relayed is not started again",
        RELAY,
        "            self._relayed.add((client, id))\n",
        "            pass\n",
    ),
    Fault(
        "relayed-after-end",
        "the terminal message ends the relayed run: the next one with its id may be started again",
        RELAY,
        "            self._relayed.discard((client, id))\n            return _END\n",
        "            return _END\n",
    ),
    Fault(
        "relayed-by-refusal",
        "a refusal after the terminal message does not make the run relayed again",
        RELAY,
        "        if kind not in _ABOUT_ENDED_RUNS:\n",
        "        if kind:\n",
    ),
    Fault(
        "relayed-after-broker-ended-it",
        "a run that the broker itself has ended is no longer relayed",
        RELAY,
        "        self._relayed.discard(key)\n",
        "",
    ),
    Fault(
        "gone-for-ever",
        "a client that is back is no longer gone",
        RELAY,
        "        flags = self._flags.get(client, 0) & ~flag\n",
        "        flags = self._flags.get(client, 0)\n",
    ),
    Fault(
        "slots-after-terminal",
        "the broker is told of a stuck run's slot before the terminal message frees the run's slot",
        WORKER,
        '        self._report_slots()\n        self._failed(run, AxonError.of("cancelled", ""))',
        '        self._failed(run, AxonError.of("cancelled", ""))\n        self._report_slots()',
    ),
    Fault(
        "stuck-slots-not-registered",
        "a worker registers with the slots that stuck code leaves",
        WORKER,
        "                slots=self._slots.available,\n",
        "                slots=self._slots.available + len(self._runs) - self._open_runs,\n",
    ),
    Fault(
        "stuck-slot-kept",
        "code that returns late gives its slot back",
        WORKER,
        "            self._slots.change_stuck(-1)\n",
        "",
    ),
    Fault(
        "waiting-not-registered",
        "a worker registers with the runs that only wait for their clients",
        WORKER,
        "        return self._store.held(waiting=waiting, sizes=sizes)\n",
        "        return self._store.held(waiting=waiting & set(), sizes=sizes)\n",
    ),
    Fault(
        "continuing-not-reported",
        "the broker is told that a waiting run continues",
        WORKER,
        "        self._control(Continuing(run.client, run.id))\n",
        "",
    ),
    Fault(
        "waiting-keeps-slot",
        "a run that only waits for its client leaves its slot",
        WORKER,
        "            self._control(Waiting(run.client, run.id))\n",
        "",
    ),
    Fault(
        "slot-of-ended-run-kept",
        "the slot of an ended run is given to the next one",
        WORKER,
        "        run.ended = True\n        self._slots.end(run)\n",
        "        run.ended = True\n",
    ),
    Fault(
        "new-before-continuing",
        "a run that continues comes before new runs",
        SLOTS,
        "        waiting = self._continuing or self._new\n",
        "        waiting = self._new or self._continuing\n",
    ),
    Fault(
        "more-runs-than-slots",
        "a run without a slot waits for one",
        SLOTS,
        "        if self._has_room() and not self._continuing and not waiting:\n",
        "        if not self._continuing and not waiting:\n",
    ),
    Fault(
        "answered-behind-stuck",
        "an answered run continues although stuck code occupies every slot",
        SLOTS,
        "        return self._held < max(1, self.available)\n",
        "        return self._held < self.available\n",
    ),
    Fault(
        "stuck-worker-stays",
        "a worker whose code stays stuck leaves",
        WORKER,
        "        if run.is_stuck:\n            text = ",
        "        if not run.ended:\n            text = ",
    ),
    Fault(
        "reason-forgotten",
        "a run that was asked to end reports that reason, whatever its code makes of it",
        WORKER,
        "        if run.reason is not None:\n            # A cancelled run",
        "        if run.reason is None:\n            # A cancelled run",
    ),
    Fault(
        "ended-twice",
        "a run ends once",
        WORKER,
        "            case Completed(run, body):\n                if not run.ended:\n",
        "            case Completed(run, body):\n                if run:\n",
    ),
    Fault(
        "no-deadline",
        "a run ends at its deadline",
        WORKER,
        "        run.cancel_deadline = self._call_at(run.deadline, partial(self._end, run, EndReason.DEADLINE))\n",
        "",
    ),
    Fault(
        "replay-from-start",
        "a replay starts with the `seq` that the client asks for",
        WORKER,
        'buffer.replay(header.get("from") or 1)',
        "buffer.replay(1)",
    ),
    Fault(
        "no-open-calls",
        "a resuming client learns which tool calls are open",
        WORKER,
        "[] if run is None else run.open_calls()",
        "[]",
    ),
    Fault(
        "asked-early-unknown",
        "a resume that comes while a handover file is read is answered after it",
        WORKER,
        "        elif self._reading:\n",
        "        elif self._reading < 0:\n",
    ),
    Fault(
        "asked-early-forgotten",
        "and it is answered",
        WORKER,
        "        resumes, self._early_resumes = self._early_resumes, []\n",
        "        resumes, self._early_resumes = [], []\n",
    ),
    Fault(
        "unknown-run-unanswered",
        "a resume of a run that is not kept is answered with an error",
        WORKER,
        '            error = RequestError("unknown_request", "the run\'s messages are no longer kept", '
        '{"may_have_run": True})\n            self._send(key, kinds.ERROR, error_body(error))\n',
        "            pass\n",
    ),
    Fault(
        "cancel-after-end-unanswered",
        "a cancellation that comes after the end is refused",
        WORKER,
        "        elif reason is EndReason.CANCELLED:\n            self._refuse(key, kinds.CANCEL)\n",
        "",
    ),
    Fault(
        "holds-nothing",
        "a worker registers with the runs that it holds",
        WORKER,
        "                holds=self._held(),\n",
        "                holds=(),\n",
    ),
    Fault(
        "leaving-said-once",
        "a leaving worker says so to each broker",
        WORKER,
        "        if self.phase is not Phase.SERVING:\n            self._control(Leaving())\n",
        "",
    ),
    Fault(
        "leaves-unannounced",
        "a leaving worker takes what the broker had sent before it knew",
        WORKER,
        "            self._enter(Phase.ANNOUNCING, now + ANSWER_TIMEOUT_S)\n",
        "            self._drain(now)\n",
    ),
    Fault(
        "leaves-with-open-runs",
        "a leaving worker writes its handover file when all its runs have ended",
        WORKER,
        "            case Phase.DRAINING if not self.open_runs:\n",
        "            case Phase.DRAINING:\n",
    ),
    Fault(
        "drains-for-ever",
        "a leaving worker ends its runs when the drain time is over",
        WORKER,
        "        self._enter(Phase.DRAINING, now + self._drain_s)\n",
        '        self._enter(Phase.DRAINING, float("inf"))\n',
    ),
    Fault(
        "handover-said-once",
        "a worker that registers again names its handover file again",
        WORKER,
        "        if self.phase is Phase.WAITING and self._handover is not None:\n",
        "        if self.phase is Phase.GONE and self._handover is not None:\n",
    ),
    Fault(
        "taken-runs-lost",
        "a worker that takes a handover file after it has written its own writes another one",
        WORKER,
        "        if self.phase in (Phase.WRITING, Phase.WAITING):\n            self._handover = None\n",
        "        if self.phase is Phase.GONE:\n            self._handover = None\n",
    ),
)


def make_copy(folder: Path, fault: Fault | None) -> None:
    """Copy the package and the simulation tests, and apply the fault."""
    shutil.copytree(ROOT / "axon_zmq", folder / "axon_zmq")
    (folder / WORLD).parent.mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    shutil.copy2(ROOT / WORLD, folder / WORLD)
    if fault is not None:
        broken = folder / fault.file
        text = broken.read_text(encoding="utf-8")
        assert text.count(fault.old) == 1, f"fault {fault.name}: its old text is {text.count(fault.old)} times there"
        broken.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def seed(fault: Fault | None) -> Outcome:
    """Run the simulation tests against a copy of the package with a fault, or without one.

    They run in a fork of this process, which has imported the slow dependencies but not the package.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_copy(Path(folder), fault)
        output = Path(folder) / "output"
        for stage in STAGES:
            code = _fork(lambda stage=stage: _run_pytest(Path(folder), stage, output))
            text = output.read_text(encoding="utf-8")
            found = re.search(r"^FAILED \S+?::(\S+)", text, re.MULTILINE)
            if code == 1 and found is not None:
                return Outcome(found[1], time.monotonic() - start)
            if code:
                raise RuntimeError(f"pytest ended with {code}:\n{text}")
    return Outcome(None, time.monotonic() - start)


def _fork(work: Callable[[], int]) -> int:
    """Call a function in a forked process, and return its exit code."""
    child = os.fork()
    if not child:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_pytest(folder: Path, stage: str, output: Path) -> int:
    """Run one stage of the simulation tests of a copy, and return pytest's exit code."""
    os.environ.update(AXON_SIMULATION="quick", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "axon_zmq")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        options = ["-x", "-q", "--tb=short", "--noconftest", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, WORLD, "-k", stage]))
        used = Path(sys.modules["axon_zmq.testing.simulation"].__file__ or "")
        sys.stdout.flush()
    return code if used.is_relative_to(folder.resolve()) else 99


def main(names: Sequence[str]) -> int:
    """Print a table of faults and the tests that detect them; the first row runs the tests without a fault.

    Args:
        names: Names of faults; an empty list means all.

    Returns:
        The exit code: 1 if a fault was not caught, or a test fails without one.
    """
    missed = 0
    for fault in (None, *FAULTS):
        name, rule = ("none", "the tests pass without a fault") if fault is None else (fault.name, fault.rule)
        if names and name not in names:
            continue
        outcome = seed(fault)
        missed += (outcome.failed is None) == (fault is not None)
        print(f"{name} | {rule} | {outcome.failed or 'no test fails'} | {outcome.seconds:.1f} s", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
