"""The supervisord configuration: one `[program]` for the broker, one for each worker, and an event listener.

Each worker has its own section, because a changed `numprocs` makes supervisord stop the whole group. Programs that are
added to a running daemon are in a second file, which the configuration includes. The broker starts first and stops
last. The file uses no `%(ENV_x)s`: supervisord refuses to start if such a variable is unset.
"""

from __future__ import annotations

import dataclasses
import glob
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from axon_zmq.errors import ConfigurationError
from axon_zmq.process.files import open_private
from axon_zmq.protocol.kinds import MODES
from axon_zmq.settings import Settings

HERE: Final = "%(here)s"
"""supervisord's variable for the directory of the configuration file; it is always set."""
LEAVE_SECONDS: Final = 15
"""Seconds beyond `AXON_DRAIN_SECONDS` in which a worker ends the remaining runs, hands over ended runs and exits."""
BROKER_STOP_SECONDS: Final = 10
"""Seconds in which a stopping broker must exit. It sends queued messages for at most 1 s."""
ADDED_PROGRAMS_FILE: Final = "more.conf"
"""File in the run directory with the programs that `scale` or `roll` added since the start."""
LISTENER: Final = "events"
"""Name of the event listener in `supervisorctl status`."""
START_SECONDS: Final = 2
"""Seconds after which supervisord considers a process started. Import errors occur earlier."""
BROKER_START_SECONDS: Final = 0
"""As `START_SECONDS`, for the broker: supervisord restarts it at once, however short it has run, and never gives up.
Otherwise, several crashes in a row, each within `START_SECONDS`, would keep all clients waiting for ever. Repeated
restarts are delayed by the broker itself (`process/backoff.py`)."""
LISTENER_START_SECONDS: Final = 1
"""As `START_SECONDS`, for the event listener. supervisord sends it no events before that, but the listener requests all
states when it starts."""
START_RETRIES: Final = 10
"""Number of consecutive failed starts after which supervisord sets a program to FATAL; each delay is 1 s
longer than the one before."""
_WORKER_SETTINGS: Final = (
    "agents",
    "toolsets",
    "model",
    "offline_models",
    "loop",
    "log_level",
    "run_loggers",
    "allowed_model_settings",
    "ambient_providers",
    "drain_seconds",
    "worker_memory",
    *(f"{mode}_slots" for mode in MODES),
)
"""Settings that a worker reads. Values that differ from the defaults are set in its environment."""
_UNREADABLE: Final = re.compile(r"\s[;#]|[\x00-\x1f]")
"""What supervisord's configuration cannot contain in a value: the start of a comment, and control characters."""


def render(settings: Settings, *, python: str = "python", directory: str = HERE) -> str:
    """Return the configuration file for these settings.

    Args:
        settings: The settings; a relative `run_dir` is relative to the directory of the file.
        python: The interpreter; a plain name is looked up on the PATH of supervisord.
        directory: Working directory of the processes, from which agents' modules are imported.

    Raises:
        ConfigurationError: A path or a setting has characters that supervisord cannot read in its configuration.
    """
    check_path(settings.run_dir)
    run_dir = settings.run_dir.as_posix() if settings.run_dir.is_absolute() else f"{HERE}/{settings.run_dir.as_posix()}"
    place = _escaped(run_dir)
    lines = [
        "; Written by `axon-zmq conf`: change the settings (AXON_* or axon.toml) and render it again.",
        "; Start: supervisord -c FILE    Status: supervisorctl -c FILE status    Logs: in the run directory.",
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
        "stdout_logfile=NONE",  # stdout of an event listener carries the protocol
        *_log_file("stderr", place, LISTENER),
    ]
    # supervisord starts programs in ascending order of priority and stops them in descending order. Without
    # killasgroup, its SIGKILL would leave the child processes of a worker running.
    for name, arguments, priority, stop_seconds in _programs(settings, run_dir):
        lines += [
            "",
            f"[program:{name}]",
            f"command={_command(python, arguments)}",
            f"directory={_escaped(directory)}",
            f"priority={priority}",
            "autorestart=true",
            f"startsecs={BROKER_START_SECONDS if name == 'broker' else START_SECONDS}",
            f"startretries={START_RETRIES}",
            f"stopwaitsecs={stop_seconds}",
            "killasgroup=true",
            "redirect_stderr=true",
            *_log_file("stdout", place, name),
        ]
    for line in lines:
        _check_readable(line)
    return "\n".join(lines) + "\n"


def check_path(run_dir: Path) -> None:
    """Check that supervisord can use the path of a run directory.

    Raises:
        ConfigurationError: The path has characters that supervisord cannot read, or would replace.
    """
    path = run_dir.as_posix()
    if "%" in path:  # supervisord replaces variables in the names of log files twice, so escaping is impossible
        raise ConfigurationError(
            f"invalid run directory {path!r}: supervisord cannot write logs to a path with '%'; set AXON_RUN_DIR to "
            "another path"
        )
    _check_readable(f"AXON_RUN_DIR={path}")


def _check_readable(line: str) -> None:
    if not line.startswith(";") and (unreadable := _UNREADABLE.search(line)):
        name, _, value = line.partition("=")
        raise ConfigurationError(
            f"invalid {name} {value!r:.200}: supervisord's configuration cannot contain {unreadable[0]!r} in a value; "
            "use a value without ' ;', ' #' and control characters"
        )


def _command(python: str, arguments: list[str]) -> str:
    return _escaped(shlex.join([python, *arguments]))


def _log_file(stream: str, place: str, name: str) -> list[str]:
    return [
        f"{stream}_logfile={place}/{name}.log",
        f"{stream}_logfile_maxbytes=10MB",
        f"{stream}_logfile_backups=5",
    ]


def _matching(path: Path) -> str:
    """Return a pattern that matches one file. `[include]` splits its value at spaces and expands patterns and `%`."""
    return glob.escape(path.as_posix()).replace(" ", "?").replace("%", "%%")


def broker_arguments(settings: Settings, run_dir: str) -> list[str]:
    """Return the arguments of the broker after the interpreter.

    The values are passed as options, so that the broker process need not import pydantic to read settings.
    """
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
    """Return the arguments of a worker after the interpreter."""
    return ["-m", "axon_zmq.worker", f"--mode={mode}", f"--name={name}", f"--run-dir={run_dir}"]


def _programs(settings: Settings, run_dir: str) -> Iterator[tuple[str, list[str], int, int]]:
    """Yield the name, arguments, priority and `stopwaitsecs` of each program."""
    yield "broker", broker_arguments(settings, run_dir), 10, BROKER_STOP_SECONDS
    for mode, processes in settings.workers().items():
        for number in range(1, processes + 1):
            name = f"{mode}-{number}"
            yield name, worker_arguments(mode, name, run_dir), 20, int(settings.drain_seconds) + LEAVE_SECONDS


def _environment(settings: Settings) -> list[str]:
    """Return the settings that differ from their defaults.

    With them in the file, workers do not depend on the environment in which supervisord was started.
    """
    pairs: list[str] = []
    for name in _WORKER_SETTINGS:
        value = getattr(settings, name)
        if value == Settings.model_fields[name].get_default(call_default_factory=True):
            continue
        if isinstance(value, dict):
            if not all(isinstance(target, str) for target in value.values()):
                continue  # a table of an MCP server may contain secrets: workers read it from axon.toml themselves
            value = ",".join(f"{key}={target}" for key, target in value.items())
        if isinstance(value, list):
            value = ",".join(value)
        if '"' in str(value):
            raise ConfigurationError(
                f"invalid AXON_{name.upper()} {value!r:.200}: supervisord cannot read a quotation mark in it; remove it"
            )
        pairs.append(f'AXON_{name.upper()}="{_escaped(str(value))}"')
    return [f"environment={','.join(pairs)}"] if pairs else []


def _escaped(text: str) -> str:
    """Escape a text so that supervisord expands only `%(here)s` in it."""
    return text.replace("%", "%%").replace(f"%{HERE}", HERE)


def replace(path: Path, text: str) -> None:
    """Write a file atomically, readable only by its owner."""
    new = path.with_suffix(".new")
    with open(new, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)
    new.replace(path)
