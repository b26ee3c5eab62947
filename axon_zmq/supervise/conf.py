"""The supervisord configuration: one `[program]` for the broker, one for each worker, and an event listener.

Each worker has its own section instead of `numprocs`: it can be added or restarted without touching the others.
Programs that are added to a running daemon are in a file of their own, which this one includes. The broker starts
first and stops last. No expansion in the file can be unset.
"""

from __future__ import annotations

import dataclasses
import glob
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from axon_zmq.protocol.kinds import MODES
from axon_zmq.settings import Settings

HERE: Final = "%(here)s"
"""supervisord's own name for the directory of the configuration file; always set."""
LEAVE_SECONDS: Final = 15
"""Seconds beyond `AXON_DRAIN_SECONDS` in which a worker ends the remaining runs, hands over ended runs and exits."""
BROKER_STOP_SECONDS: Final = 10
"""Seconds in which a stopping broker must exit. It empties its send queues for a second at most."""
ADDED_PROGRAMS_FILE: Final = "more.conf"
"""Name of a file in the run directory: the programs that `scale` or `roll` added since the start."""
LISTENER: Final = "events"
"""The event listener's name in `supervisorctl status`."""
START_SECONDS: Final = 2
"""A process that lives this long has started; an import error shows within it."""
LISTENER_START_SECONDS: Final = 1
"""Seconds in which supervisord sends no events yet; the listener asks for all states when it starts."""
START_RETRIES: Final = 10
"""Starts in a row, each a second later than the one before, until a program is FATAL."""
_WORKER_SETTINGS: Final = (
    "agents",
    "toolsets",
    "model",
    "loop",
    "log_level",
    "run_loggers",
    "drain_seconds",
    *(f"{mode}_slots" for mode in MODES),
)
"""Settings that a worker reads from its environment."""


def render(settings: Settings, *, python: str = "python", directory: str = HERE) -> str:
    """The configuration for these settings.

    Args:
        settings: A relative `run_dir` is taken from the file's own directory.
        python: The interpreter; the plain name is found on supervisord's PATH.
        directory: Where the processes run: agents' modules are imported from there.
    """
    run_dir = settings.run_dir.as_posix() if settings.run_dir.is_absolute() else f"{HERE}/{settings.run_dir.as_posix()}"
    place = _escaped(run_dir)
    lines = [
        "; Written by `axon-zmq conf`: change the settings (AXON_* or axon.toml) and render it again.",
        "; Start: supervisord -c FILE    Look: supervisorctl -c FILE status    Logs: beside the sockets.",
        "",
        "[unix_http_server]",
        f"file={place}/supervisor.sock",
        "chmod=0700",
        "",
        "[supervisord]",
        f"logfile={place}/supervisord.log",
        "logfile_maxbytes=10MB",
        "logfile_backups=5",
        f"pidfile={place}/supervisord.pid",
        f"childlogdir={place}",
        "umask=077",
        *_environment(settings),
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[supervisorctl]",
        f"serverurl=unix://{place}/supervisor.sock",
        "",
        "[include]",
        f"files={_matching(settings.run_dir / ADDED_PROGRAMS_FILE)}",
        "",
        f"[eventlistener:{LISTENER}]",
        f"command={_command(python, ['-m', 'axon_zmq.supervise.listener', f'--run-dir={run_dir}'])}",
        f"directory={_escaped(directory)}",
        "events=PROCESS_STATE",
        "buffer_size=1000",
        "priority=5",
        "autorestart=true",
        f"startsecs={LISTENER_START_SECONDS}",
        f"startretries={START_RETRIES}",
        "stopwaitsecs=2",
        "stdout_logfile=NONE",
        *_log_file("stderr", place, LISTENER),
    ]
    for name, arguments, priority, stop_seconds in _programs(settings, run_dir):
        lines += [
            "",
            f"[program:{name}]",
            f"command={_command(python, arguments)}",
            f"directory={_escaped(directory)}",
            f"priority={priority}",
            "autorestart=true",
            f"startsecs={START_SECONDS}",
            f"startretries={START_RETRIES}",
            f"stopwaitsecs={stop_seconds}",
            "killasgroup=true",
            "redirect_stderr=true",
            *_log_file("stdout", place, name),
        ]
    return "\n".join(lines) + "\n"


def _command(python: str, arguments: list[str]) -> str:
    return _escaped(shlex.join([python, *arguments]))


def _log_file(stream: str, place: str, name: str) -> list[str]:
    return [
        f"{stream}_logfile={place}/{name}.log",
        f"{stream}_logfile_maxbytes=10MB",
        f"{stream}_logfile_backups=5",
    ]


def _matching(path: Path) -> str:
    """A pattern for one file, as `[include]` wants it: relative to the configuration, and without spaces."""
    return glob.escape(path.as_posix()).replace(" ", "?").replace("%", "%%")


def broker_arguments(settings: Settings, run_dir: str) -> list[str]:
    """The broker's command line behind the interpreter: plain values, so that it need not read settings."""
    bounds = settings.bounds()
    changed = [
        f"--{bound.name.replace('_', '-')}={getattr(bounds, bound.name)}"
        for bound in dataclasses.fields(bounds)
        if getattr(bounds, bound.name) != bound.default
    ]
    if settings.log_level != "info":
        changed.append(f"--log-level={settings.log_level}")
    return ["-m", "axon_zmq.broker", f"--frontend={settings.frontend}", f"--run-dir={run_dir}", *changed]


def worker_arguments(mode: str, name: str, run_dir: str) -> list[str]:
    """A worker's command line behind the interpreter."""
    return ["-m", "axon_zmq.worker", f"--mode={mode}", f"--name={name}", f"--run-dir={run_dir}"]


def _programs(settings: Settings, run_dir: str) -> Iterator[tuple[str, list[str], int, int]]:
    """Name, arguments, priority and seconds to stop of each program."""
    yield "broker", broker_arguments(settings, run_dir), 10, BROKER_STOP_SECONDS
    for mode, processes in settings.workers().items():
        for number in range(1, processes + 1):
            name = f"{mode}-{number}"
            yield name, worker_arguments(mode, name, run_dir), 20, int(settings.drain_seconds) + LEAVE_SECONDS


def _environment(settings: Settings) -> list[str]:
    """What differs from the defaults, so that the file means the same wherever it is started."""
    pairs: list[str] = []
    for name in _WORKER_SETTINGS:
        value = getattr(settings, name)
        if value == Settings.model_fields[name].get_default(call_default_factory=True):
            continue
        if isinstance(value, dict):
            if not all(isinstance(target, str) for target in value.values()):
                continue  # an MCP server's table, which may hold secrets: it stays in axon.toml
            value = ",".join(f"{key}={target}" for key, target in value.items())
        if isinstance(value, list):
            value = ",".join(value)
        pairs.append(f'AXON_{name.upper()}="{_escaped(str(value))}"')
    return [f"environment={','.join(pairs)}"] if pairs else []


def _escaped(text: str) -> str:
    """Text in which supervisord expands nothing but its own `%(here)s`."""
    return text.replace("%", "%%").replace(f"%{HERE}", HERE)


def write(settings: Settings, path: Path, python: str, directory: Path) -> None:
    """Render into a file, readable by its owner alone, whole or not at all."""
    replace(path, render(settings, python=python, directory=str(directory)))


def replace(path: Path, text: str) -> None:
    """Write a file, readable by its owner alone, whole or not at all."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text, encoding="utf-8")
    new.replace(path)
