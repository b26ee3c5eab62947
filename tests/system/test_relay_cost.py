"""What the relay path executes for a message: instructions, which no other load on the machine changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

MESSAGES = 500
BOUND = 0.2
"""Our instructions by the plain loop's, at most: 9 % above the 0.184 that were measured on CPython 3.11 with pyzmq 27.3
(20,200 by 110,100 a message; they repeat to 0.01 %). One flag or-ed as an enum is 31 % more, one send through pyzmq's
wrapper 13 %."""


PLAIN_MESSAGE = 110_400
"""Instructions of the plain loop for one message, as `BOUND` was measured; they repeat to 0.01 %."""


def _total(file: Path) -> int:
    [total] = [line for line in file.read_text().splitlines() if line.startswith("totals:")]
    return int(total.partition(":")[2])


ECHOES = 100
ECHO_BOUND = 2.7
"""The broker's instructions for a request and its answer by the plain loop's for one message, at most: 9 % above the
2.47 that were measured (273,000 by 110,400)."""


def counts(folder: Path, *arguments: str) -> list[int]:
    """The instructions between the marks of `tests.support.relay_cost`, in order."""
    done = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--dump-before=zmq_version", f"--callgrind-out-file={folder}/counts"),
            *(sys.executable, "-m", "tests.support.relay_cost", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return [_total(path) for path in sorted(folder.glob("counts.*"), key=lambda path: int(path.suffix[1:]))]


needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="no valgrind; on Debian: apt-get install valgrind"
)


@needs_valgrind
def test_a_relayed_message_takes_less_than_a_fifth_of_the_plain_loops_instructions(tmp_path):
    _filling, ours, _filling, plain = counts(tmp_path, str(MESSAGES))[-4:]
    assert plain > MESSAGES * 10_000, "callgrind did not see libzmq's zmq_version"
    assert ours / plain < BOUND, f"{ours / MESSAGES:,.0f} instructions by {plain / MESSAGES:,.0f} a message"


@needs_valgrind
def test_a_request_and_its_answer_take_less_than_three_times_the_instructions_of_a_plain_relay(tmp_path):
    _filling, requests, _worker, answers = counts(tmp_path, str(ECHOES), "echo")[-4:]
    per_echo = (requests + answers) / ECHOES
    assert per_echo / PLAIN_MESSAGE < ECHO_BOUND, f"{per_echo:,.0f} instructions a request"
