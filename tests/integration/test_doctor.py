"""`axon-zmq doctor`."""

from __future__ import annotations

import sys

from axon_zmq.cli.doctor import examine


def test_doctor_names_the_event_loop_of_workers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXON_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("AXON_LOOP", "uvloop")
    findings = {finding.subject: finding for finding in examine("tcp://127.0.0.1:1")}
    assert (findings["event loop"].state, findings["event loop"].detail) == ("ok", "uvloop")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    findings = {finding.subject: finding for finding in examine("tcp://127.0.0.1:1")}
    assert findings["event loop"].state == "FAIL"
    assert "not installed" in findings["event loop"].detail
