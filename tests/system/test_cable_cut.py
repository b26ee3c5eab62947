"""A host or cable that fails without a FIN (rule 8), in a network namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT


def unshared(*command: str) -> list[str]:
    return ["unshare", "--net", *command]


def why_not() -> str:
    """The reason why no network namespace can be created here, or an empty text."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "needs unshare and ip (Debian: util-linux, iproute2)"
    tried = subprocess.run(unshared("ip", "link", "set", "lo", "up"), capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no network namespace can be made here: {tried.stderr.strip()}"


@pytest.mark.timeout(240)
def test_clients_survive_a_cut_cable_as_promised():
    if reason := why_not():
        pytest.skip(reason)
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "tests/system/namespaced/cable_cut.py",
    ]
    done = subprocess.run(unshared(*tests), cwd=ROOT, capture_output=True, text=True, timeout=230)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
