"""`axon-zmq`: serve the daemon, look at it, and talk to its agents from a terminal or a pipe.

Exit codes: 0 done, 1 the run failed, 2 a wrong option, setting or request, 3 not now (no daemon,
overloaded, no worker): try again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from axon_zmq import __version__, settings
from axon_zmq.errors import AxonError, ConfigurationError, RequestError, UnavailableError

FAILED, WRONG, NOT_NOW = 1, 2, 3
THERE = 2.0
"""Seconds within which a daemon that is there answers."""

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Endpoint = Annotated[str | None, typer.Option(help="The daemon's frontend.", envvar="AXON_FRONTEND")]
AgentName = Annotated[str, typer.Argument(help='A registered name, or an agent as JSON: \'{"model": "echo"}\'.')]
Prompt = Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")]
Model = Annotated[str | None, typer.Option(help="Model in place of the agent's, such as synthetic:tokens=20.")]
Timeout = Annotated[float, typer.Option(help="Seconds that the run may take.", min=0.001)]
Schema = Annotated[
    Path | None, typer.Option(help="File with a JSON Schema that the answer must fit.", exists=True, dir_okay=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines, as in a pipe.")]


class Mode(StrEnum):
    """pydantic-ai's execution modes."""

    RUN_SYNC = "run_sync"
    RUN = "run"
    RUN_STREAM = "run_stream"


def main() -> None:
    """The console script."""
    try:
        app()
    except (ConfigurationError, AxonError) as error:
        _fail(str(error), WRONG)
    except (ValueError, OSError) as error:  # an endpoint, a file or a text that is none
        _fail(f"{type(error).__name__}: {error}", WRONG)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False)
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


# --- the daemon ------------------------------------------------------------------------------------


@app.command()
def serve(
    demo: Annotated[bool, typer.Option(help="Send one request through each mode, show it, and stop.")] = False,
) -> None:
    """Serve the supervised daemon in the foreground, until Ctrl-C or SIGTERM."""
    from axon_zmq.supervise.daemon import Daemon
    from axon_zmq.supervise.welcome import greet, show_next_steps, wait_for_workers

    daemon = Daemon(settings.load(), Path.cwd())
    configured = daemon.settings
    daemon.start()
    try:
        out.print(f"starting: broker and {sum(configured.workers().values())} workers, logs in {configured.run_dir}")
        if wait_for_workers(daemon, out):
            asyncio.run(greet(configured, out))
            if demo:
                daemon.stop()
            else:
                show_next_steps(configured, daemon.conf, out)
        code = daemon.wait()
    except BaseException:
        daemon.stop()
        raise
    out.print("stopped: no process is left" if code == 0 else f"ended: see the logs in {configured.run_dir}")
    raise typer.Exit(code)


@app.command()
def broker() -> None:
    """Run the broker alone, in the foreground; supervisord starts the same."""
    from axon_zmq.supervise.conf import broker_arguments

    configured = settings.load()
    os.execv(sys.executable, [sys.executable, *broker_arguments(configured, str(configured.run_dir.absolute()))])  # noqa: S606


@app.command()
def worker(
    mode: Annotated[Mode, typer.Argument(help="What it executes.")],
    name: Annotated[str | None, typer.Option(help="Its name in logs; run-4711 and the like where left out.")] = None,
) -> None:
    """Run one worker alone, in the foreground, for the broker of the same run directory."""
    from axon_zmq.supervise.conf import worker_arguments

    run_dir = str(settings.load().run_dir.absolute())
    arguments = worker_arguments(mode.value, name or f"{mode.value}-{os.getpid()}", run_dir)
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


@app.command()
def conf() -> None:
    """Print the supervisord configuration for the settings."""
    from axon_zmq.supervise.conf import render

    sys.stdout.write(render(settings.load()))


@app.command()
def doctor(endpoint: Endpoint = None) -> None:
    """Check settings, agents, run directory and daemon, and say how to mend what is wrong."""
    from axon_zmq.supervise.doctor import examine

    wrong = 0
    for finding in examine(endpoint):
        wrong += not finding.good
        out.print("ok   " if finding.good else "WRONG", end=" ", style="green" if finding.good else "bold red")
        out.print(f"{finding.what}: {finding.found}", markup=False)
        if not finding.good:
            out.print(f"      mend: {finding.mend}", markup=False)
    raise typer.Exit(FAILED if wrong else 0)


# --- its clients -----------------------------------------------------------------------------------


@app.command()
def ping(
    wait: Annotated[float, typer.Option(help="Seconds to wait until each configured mode has a worker.", min=0)] = 0,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show the daemon's version, workers and queues; with --wait, wait until it can serve."""
    pong = _talk(_ping(endpoint, wait))
    if as_json or not out.is_terminal:
        _line(pong)
        return
    out.print(f"axon_zmq {pong['version']}, boot {pong['boot']}, protocol {pong['protocol']}")
    for mode, pool in pong["modes"].items():
        out.print(f"  {mode:<12}{pool['workers']} workers, {pool['free']} free slots, {pool['queued']} queued")


async def _ping(endpoint: str | None, wait: float) -> dict[str, Any]:
    from axon_zmq.client import AsyncClient

    wanted = [mode for mode, processes in settings.load().workers().items() if processes]
    give_up = time.monotonic() + wait
    async with AsyncClient(endpoint or settings.load().frontend) as client:
        while True:
            left = give_up - time.monotonic()
            try:
                pong = await client.ping(max(THERE, min(left, 5.0)))
                if not wait or all(pong["modes"][mode]["workers"] for mode in wanted):
                    return pong
                if left <= 0:
                    raise UnavailableError("no_worker", f"after {wait:g} s a mode has no worker: {pong['modes']}")
            except UnavailableError:
                if left <= 0:
                    raise
            await asyncio.sleep(0.1)


@app.command()
def agents(
    name: Annotated[str | None, typer.Argument(help="One agent, in full.")] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """List the agents that the daemon serves."""
    found = _talk(_describe(endpoint, name))
    if as_json or name or not out.is_terminal:
        _line(found)
        return
    for each, entry in found.items():
        out.print(each, style="bold" if "error" not in entry else "bold red", markup=False)
        out.print(f"  {entry.get('error') or entry['description'] or ''}", markup=False)
        for tool in entry.get("tools", ()):
            out.print(f"  tool {tool['name']}: {(tool['description'] or '').splitlines()[0]}", markup=False)


async def _describe(endpoint: str | None, name: str | None) -> dict[str, Any]:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(THERE)
        return await client.describe(name)


@app.command()
def run(
    agent: AgentName,
    prompt: Prompt,
    sync: Annotated[bool, typer.Option("--sync", help="Mode run_sync in place of run.")] = False,
    model: Model = None,
    timeout: Timeout = 600,
    output_schema: Schema = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent and print its answer."""
    options = _run_options(model, timeout, output_schema)
    _talk(_run("run_sync" if sync else "run", _agent(agent), _prompt(prompt), options, endpoint, as_json), as_json)


async def _run(
    mode: str, agent: Any, prompt: str, options: dict[str, Any], endpoint: str | None, as_json: bool
) -> None:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(THERE)
        done = await getattr(client, mode)(agent, prompt, **options)
    if as_json or not out.is_terminal:
        _line({"kind": "complete", **_fields(done)})
    else:
        out.print(done.result if isinstance(done.result, str) else _json(done.result, indent=2), markup=False)


@app.command()
def stream(
    agent: AgentName,
    prompt: Prompt,
    model: Model = None,
    timeout: Timeout = 600,
    output_schema: Schema = None,
    all_events: Annotated[bool, typer.Option("--all-events", help="pydantic-ai's own events.")] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent and print its answer as it comes."""
    options = _run_options(model, timeout, output_schema)
    if all_events:
        options["events"] = "all"
    _talk(_stream(_agent(agent), _prompt(prompt), options, endpoint, as_json), as_json)


async def _stream(agent: Any, prompt: str, options: dict[str, Any], endpoint: str | None, as_json: bool) -> None:
    from axon_zmq.client import AsyncClient
    from axon_zmq.messages import Chunk, Complete

    as_lines = as_json or not out.is_terminal
    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(THERE)
        async with client.stream(agent, prompt, **options) as events:
            async for event in events:
                if as_lines:
                    _line({"kind": type(event).__name__.lower(), **_fields(event)})
                elif isinstance(event, Chunk):
                    _show(event)
                elif isinstance(event, Complete):
                    out.print("" if isinstance(event.result, str) else _json(event.result, indent=2), markup=False)


def _show(chunk: Any) -> None:
    """One chunk on a terminal."""
    match chunk.type:
        case "text":
            out.print(chunk.data, end="", markup=False)
            out.file.flush()
        case "thinking":
            out.print(chunk.data, end="", style="dim italic", markup=False)
            out.file.flush()
        case "tool_started":
            out.print(f"[{chunk.data['name']} {_json(chunk.data['args'])}]", style="cyan", markup=False)
        case "tool_finished":
            out.print(f"[{chunk.data['outcome']}: {_json(chunk.data['result'])}]", style="cyan", markup=False)
        case "event":
            out.print(_json(chunk.data), style="dim", markup=False)
        case _:
            pass


# --- small things ----------------------------------------------------------------------------------


def _talk(talk: Coroutine[Any, Any, Any], as_json: bool = False) -> Any:
    """Run a conversation with the daemon; its failure becomes a message and an exit code."""
    try:
        return asyncio.run(talk)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except AxonError as error:
        if as_json or not out.is_terminal:
            _line({"kind": "error", **error.to_body()})
        code = WRONG if isinstance(error, RequestError) else NOT_NOW if isinstance(error, UnavailableError) else FAILED
        hint = "; start one with `axon-zmq serve`" if error.error_type == "unreachable" else ""
        _fail(f"{error}{hint}", code)


def _agent(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        _fail(f"the agent is not valid JSON: {error}", WRONG)


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _run_options(model: str | None, timeout: float, output_schema: Path | None) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout_ms": int(timeout * 1000), "model": model}
    if output_schema is not None:
        try:
            options["output_schema"] = json.loads(output_schema.read_text(encoding="utf-8"))
        except ValueError as error:
            _fail(f"{output_schema} is no JSON: {error}", WRONG)
    return options


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def _json(value: Any, indent: int | None = None) -> str:
    from pydantic_core import to_json

    return to_json(value, indent=indent, bytes_mode="base64").decode()


def _line(value: Any) -> None:
    sys.stdout.write(_json(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
