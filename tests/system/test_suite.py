"""The test suite itself: it passes wherever it is started."""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT

CTRL_C = "tests/integration/test_cli_tools.py::test_sigint_in_a_pipe_exits_at_once"


def test_tests_of_ctrl_c_pass_in_a_background_job_that_ignores_sigint():
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CTRL_C]
    # As `nohup ./scripts/test &` in a script: a shell without job control ignores SIGINT in its background jobs.
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *tests], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
