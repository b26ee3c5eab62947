"""Errors of supervisord, as its XML-RPC client reports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from axon_zmq.supervise import supervisord


def test_errors_of_supervisord_are_not_taken_for_errors_of_the_listener(tmp_path: Path):
    with pytest.raises(supervisord.FAULTS):
        supervisord.workers(tmp_path)
