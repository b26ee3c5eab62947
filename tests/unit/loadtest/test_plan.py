"""Checks of a load test before it starts."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from axon_zmq import loadtest
from axon_zmq.cli import loadtest as console
from axon_zmq.cli.app import app, main
from axon_zmq.errors import ConfigurationError
from axon_zmq.loadtest.driver import Driver
from axon_zmq.loadtest.plan import Scenario, check_target
from tests.support.load_plans import plan


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--endpoint", "tcp://192.0.2.1:5570"], "--remote"),
        (["--endpoint", "udp://127.0.0.1:5570"], "invalid endpoint"),
        (["--endpoint", "tcp://127.0.0.1:99999"], "invalid endpoint"),
        (["--rate", "5", "--streams", "5"], "cannot be combined"),
        (["--compare", "pyproject.toml", "pyproject.toml"], "is not a report"),
        (["--compare", "nowhere", "nowhere"], "cannot read report nowhere: No such file"),
        (["unary", "--compare", "a", "b"], "--compare cannot be combined with scenario"),
        (["--compare", "a", "b", "--rate", "5"], "--compare cannot be combined with --rate"),
    ],
)
def test_an_invalid_plan_is_rejected_with_a_reason(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["axon-zmq", "loadtest", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["--timeout", "--warmup", "--duration", "--read-ms", "--drop-every", "--rate"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e12"])
def test_durations_must_be_within_bounds(option, value):
    done = CliRunner().invoke(app, ["loadtest", option, value])
    assert done.exit_code == 2
    assert option in done.output


def test_too_few_file_descriptors_are_reported_before_the_load_starts(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (300, 300))
    with pytest.raises(ConfigurationError, match="raise ulimit -n, or use fewer --clients"):
        Driver(plan("tcp://127.0.0.1:1", Scenario.SLOW_READERS, clients=64))


def test_a_missing_folder_is_reported_before_the_load_starts(tmp_path):
    for files in ((tmp_path / "nowhere" / "report.json", None), (None, tmp_path / "nowhere" / "report.html")):
        with pytest.raises(ConfigurationError, match="cannot write"):
            console.drive(plan("tcp://127.0.0.1:1", Scenario.UNARY, most=1, timeout=0.1), {}, *files)


def test_a_remote_daemon_must_be_allowed_explicitly():
    assert check_target("tcp://192.0.2.1:5570", remote=True) == "tcp://192.0.2.1:5570"
    assert check_target("ipc:///tmp/axon.sock", remote=False)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(loadtest, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"hdrhistogram and plotly.*pip install 'axon-zmq\[loadtest\]'"):
        loadtest.require_extra()
