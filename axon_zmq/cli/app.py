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
from collections.abc import Coroutine, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from axon_zmq import __version__, settings
from axon_zmq.cli.terminal import (
    JsonLinesUI,
    Lines,
    TerminalUI,
    UnansweredError,
    converse,
    err,
    out,
    print_event,
    print_line,
    print_result,
)
from axon_zmq.errors import AxonError, ConfigurationError, RequestError, RunEndedError, UnavailableError
from axon_zmq.events import Complete
from axon_zmq.loadtest.plan import Plan, Scenario, check_target
from axon_zmq.protocol.kinds import mode_of

FAILED, WRONG, NOT_NOW, INTERRUPTED = 1, 2, 3, 130
PING_TIMEOUT_S = 2.0
"""Seconds to wait for the first `pong`; a running daemon answers within milliseconds."""

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Endpoint = Annotated[str | None, typer.Option(help="The daemon's frontend.", envvar="AXON_FRONTEND")]
AgentName = Annotated[str, typer.Argument(help='A registered name, or an agent as JSON: \'{"model": "echo"}\'.')]
Prompt = Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")]
Model = Annotated[str | None, typer.Option(help="Model in place of the agent's, such as synthetic:tokens=20.")]
Timeout = Annotated[float, typer.Option(help="Seconds that the run may take.", min=0.001)]
Schema = Annotated[
    Path | None, typer.Option(help="File with a JSON Schema that the answer must fit.", exists=True, dir_okay=False)
]
ConfFile = Annotated[
    Path | None,
    typer.Option("--conf", help="supervisord's configuration, where it is not found.", exists=True, dir_okay=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines, as in a pipe.")]


class Level(StrEnum):
    """Of log records."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


Tools = Annotated[
    Path | None,
    typer.Option(
        help="File with a JSON list of tools that are answered here: "
        '[{"name": …, "description": …, "parameters": {JSON Schema}}].',
        exists=True,
        dir_okay=False,
    ),
]
Log = Annotated[Level | None, typer.Option(help="Show the agent's log records from this level on.")]
Interactive = Annotated[
    bool,
    typer.Option(
        "--interactive",
        "-i",
        help="In a pipe: read answers from standard input. With --tools and on a terminal it is so anyhow.",
    ),
]
ANSWERING = """On a terminal, calls of --tools and calls that want approval are asked for, and the run goes on with the
answers. Ctrl-D ends the answers: live calls fail, and a run that waits for approval ends with exit code 1.

In a pipe, each event is a JSON line. With --tools or --interactive, answers are JSON lines on standard input:

\b
  {"call_id": "…", "result": 5}             a tool's result; also "content", "metadata"
  {"call_id": "…", "error": {"message": "no", "retry": false}}
  {"approve": {"…": true}}                  by call_id; false or "a reason"; {…}: other arguments
  {"steer": "more to say"}                  to a run under way

A tool_call line wants its result while the run waits. After a complete line with "deferred", answer all of its
calls and approvals: the next run follows. A line that is not taken comes back as a refused line."""


class Mode(StrEnum):
    """pydantic-ai's execution modes."""

    RUN_SYNC = "run_sync"
    RUN = "run"
    RUN_STREAM = "run_stream"


def main() -> None:
    """The console script."""
    try:
        app()
    except UnavailableError as error:
        _fail(str(error), NOT_NOW)
    except (ConfigurationError, AxonError) as error:
        _fail(str(error), WRONG)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else f"{type(error).__name__}: {error}", WRONG)
    except ValueError as error:  # ours say it all; a library's may need its name
        _fail(str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}", WRONG)


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
    from axon_zmq.cli.welcome import greet, show_next_steps, wait_for_workers
    from axon_zmq.supervise.daemon import Daemon

    daemon = Daemon(settings.load(), Path.cwd())
    configured = daemon.settings
    daemon.start()
    try:
        out.print(f"starting: broker and {sum(configured.workers().values())} workers, logs in {configured.run_dir}")
        if wait_for_workers(daemon, out):
            try:
                asyncio.run(greet(daemon, out))
            except (UnavailableError, RunEndedError) as error:  # a worker that died just now is started again
                if demo:
                    raise
                err.print(f"the greeting failed: {error}", style="red", markup=False)
            if demo:
                daemon.stop()
            elif not daemon.stopping:
                show_next_steps(configured, daemon.conf, out)
        ending = f"stopping: what runs has {configured.drain_seconds:g} s to end; Ctrl-C again ends it at once"
        code = daemon.wait(lambda: out.print(ending))
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
    from axon_zmq.cli.doctor import examine

    wrong = 0
    for finding in examine(endpoint):
        wrong += not finding.good
        out.print("ok   " if finding.good else "WRONG", end=" ", style="green" if finding.good else "bold red")
        out.print(f"{finding.what}: {finding.found}", markup=False)
        if not finding.good:
            out.print(f"      mend: {finding.mend}", markup=False)
    raise typer.Exit(FAILED if wrong else 0)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show each process and each mode; exit code 3 where something is not as it should be, or nobody answers."""
    from axon_zmq.cli.status import is_well, report, show

    found = report(_run_dir())
    if as_json or not out.is_terminal:
        print_line(found)
    else:
        show(found, out)
    raise typer.Exit(0 if is_well(found) else NOT_NOW)


@app.command()
def scale(
    mode: Annotated[Mode, typer.Argument(help="Whose processes.")],
    processes: Annotated[int, typer.Argument(help="How many there shall be, until the next start.", min=0, max=256)],
    conf_file: ConfFile = None,
) -> None:
    """Add or remove processes of a mode, without touching the others; those removed finish what they have."""
    from axon_zmq.supervise import programs

    programs.scale(programs.WorkerPrograms(_run_dir(), conf_file), mode.value, processes, _say)


@app.command()
def roll(
    names: Annotated[
        list[str] | None, typer.Argument(help="Modes or processes, such as run or run_stream-2; all where left out.")
    ] = None,
    with_broker: Annotated[bool, typer.Option("--broker", help="The broker too, at the end.")] = False,
    conf_file: ConfFile = None,
) -> None:
    """Restart processes one after the other; no request fails: a new one is there before an old one stops."""
    from axon_zmq.supervise import programs

    there = programs.WorkerPrograms(_run_dir(), conf_file)
    all_names = there.names()
    chosen = [name for name in all_names if not names or name in names or mode_of(name) in names]
    known = {*all_names, *Mode}
    if unknown := set(names or ()) - known:
        _fail(f"no mode and no process is called {min(unknown)!r}; there are {', '.join(all_names)}", WRONG)
    for empty in sorted(set(names or ()) & set(Mode) - {mode_of(name) for name in all_names}):
        _say(f"{empty} has no worker: there is nothing to restart")
    programs.roll(there, chosen, with_broker, _say)


@app.command()
def conformance(
    server: Annotated[
        bool, typer.Option("--server", help="Play the broker; else the Python client is driven.")
    ] = False,
    endpoint: Annotated[str, typer.Option(help="A free port of 127.0.0.1.")] = "tcp://127.0.0.1:5571",
    only: Annotated[list[str] | None, typer.Option(help="Just this case; may be given several times.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds without a message until it is over.", min=1)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Play a broker at its worst, to check a client of any language; exit code 1 where it breaks a rule."""
    from axon_zmq.cli.conformance import play
    from axon_zmq.conformance import driver

    if server:
        raise typer.Exit(0 if play(endpoint, only or [], patience, as_json) else FAILED)
    driver.drive(endpoint)


def _run_dir() -> Path:
    return settings.load().run_dir.absolute()


def _say(what: str) -> None:
    if out.is_terminal:
        out.print(what, markup=False)
    else:
        print_line({"done": what})


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
        print_line(pong)
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
                pong = await client.ping(max(PING_TIMEOUT_S, min(left, 5.0)))
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
    found, toolsets = _talk(_describe(endpoint, name))
    if as_json or name or not out.is_terminal:
        print_line(found)
        return
    for each, entry in found.items():
        _show_entry(each, entry)
    for each, entry in toolsets.items():
        _show_entry(f"toolset {each}", entry)


def _show_entry(name: str, entry: Mapping[str, Any]) -> None:
    """An agent or a toolset on a terminal."""
    out.print(name, style="bold" if "error" not in entry else "bold red", markup=False)
    if about := entry.get("error") or entry.get("description"):
        out.print(f"  {about}", markup=False)
    for tool in entry.get("tools", ()):
        told = next(iter((tool["description"] or "").splitlines()), "")
        out.print(f"  tool {tool['name']}{told and ': '}{told}", markup=False)


async def _describe(endpoint: str | None, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(PING_TIMEOUT_S)
        return await client.describe(name), {} if name else await client.toolsets()


@app.command(epilog=ANSWERING)
def run(
    agent: AgentName,
    prompt: Prompt,
    sync: Annotated[bool, typer.Option("--sync", help="Mode run_sync in place of run.")] = False,
    model: Model = None,
    timeout: Timeout = 600,
    output_schema: Schema = None,
    tools: Tools = None,
    log: Log = None,
    interactive: Interactive = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent and print its answer."""
    options = _run_options(model, timeout, output_schema, tools, log)
    mode = "run_sync" if sync else "run"
    _talk(_converse(mode, agent, prompt, options, endpoint, as_json, interactive), as_json)


@app.command(epilog=ANSWERING)
def stream(
    agent: AgentName,
    prompt: Prompt,
    model: Model = None,
    timeout: Timeout = 600,
    output_schema: Schema = None,
    tools: Tools = None,
    log: Log = None,
    interactive: Interactive = False,
    all_events: Annotated[bool, typer.Option("--all-events", help="pydantic-ai's own events.")] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent and print its answer as it comes."""
    options = _run_options(model, timeout, output_schema, tools, log)
    if all_events:
        options["events"] = "all"
    _talk(_converse("run_stream", agent, prompt, options, endpoint, as_json, interactive), as_json)


def _converse(
    mode: Any, agent: str, prompt: str, options: dict[str, Any], endpoint: str | None, as_json: bool, answers: bool
) -> Coroutine[Any, Any, None]:
    names = [tool.get("name") for tool in options.get("tools", ())]
    if prompt == "-" and (names or answers):
        _fail("standard input is for answers: give the prompt as an argument", WRONG)
    if as_json or not out.is_terminal:
        face = JsonLinesUI(Lines() if names or answers else None)
    else:
        face = TerminalUI(Lines(), names, mode == "run_stream")
    return _run(mode, _agent(agent), _prompt(prompt), options, endpoint, face)


async def _run(
    mode: Any, agent: Any, prompt: str, options: dict[str, Any], endpoint: str | None, face: TerminalUI | JsonLinesUI
) -> None:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(PING_TIMEOUT_S)
        await converse(client, mode, agent, prompt, options, face)


@app.command()
def call(
    tool: Annotated[str, typer.Argument(help="The tool's name.")],
    args: Annotated[str, typer.Argument(help="Its arguments, as a JSON object.")] = "{}",
    agent: Annotated[str | None, typer.Option(help="The agent that has the tool.")] = None,
    timeout: Timeout = 600,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Call one Python tool of the daemon's, without a model, and print its result."""
    named = _json_object(args, "the arguments are")
    done = _talk(_call(tool, named, endpoint, agent=agent, timeout_ms=int(timeout * 1000)), as_json)
    if as_json or not out.is_terminal:
        print_event(done)
    else:
        print_result(done.result)


async def _call(tool: str, args: dict[str, Any], endpoint: str | None, **options: Any) -> Complete:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(endpoint or settings.load().frontend) as client:
        await client.ping(PING_TIMEOUT_S)
        return await client.call_tool(tool, args, **options)


@app.command()
def loadtest(
    context: typer.Context,
    scenario: Annotated[Scenario, typer.Argument(help="What is sent.")] = Scenario.STREAMS,
    rate: Annotated[float | None, typer.Option(help="Requests a second, by schedule.", min=0.01, max=100_000)] = None,
    streams: Annotated[
        int | None, typer.Option(help="Requests open at a time; 10 without --rate.", min=1, max=100_000)
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds that are measured.", min=0.1, max=86_400)] = 10,
    warmup: Annotated[float, typer.Option(help="Seconds before that, left out of the figures.", min=0, max=86_400)] = 2,
    most: Annotated[int, typer.Option(help="Requests in all, at most.", min=1)] = 100_000,
    clients: Annotated[int, typer.Option(help="Connections to spread them over.", min=1, max=64)] = 8,
    agent: Annotated[str | None, typer.Option(help="In place of the offline examples; a name or JSON.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Its prompt.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Mode run_sync in place of run.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that each request may take.", min=0.001, max=86_400)] = 30,
    read_ms: Annotated[float, typer.Option(help="What a slow reader takes for a chunk.", min=0, max=60_000)] = 100,
    drop_every: Annotated[
        float, typer.Option(help="Seconds between two drops of a connection.", min=2.5, max=86_400)
    ] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report there.", dir_okay=False, writable=True)
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="The same, with plots.", dir_okay=False, writable=True)
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Put no load on: show two JSON reports and their ratios.")
    ] = None,
    remote: Annotated[bool, typer.Option("--remote", help="The endpoint may be another machine's.")] = False,
    endpoint: Endpoint = None,
) -> None:
    """Put load on a running daemon, and show what its clients see; exit code 1 where a request failed."""
    from axon_zmq.loadtest import require_extra

    require_extra()
    from axon_zmq.cli.loadtest import compare as compare_reports
    from axon_zmq.cli.loadtest import drive

    if compare is not None:
        _check_alone(context, "--compare", "--json", "--html")
        compare_reports(*compare, json_file, html_file)
        return
    if rate is not None and streams is not None:
        _fail("--rate is by schedule, --streams is so many at a time: give one of them", WRONG)
    plan = Plan(
        endpoint=check_target(endpoint or settings.load().frontend, remote),
        scenario=scenario,
        rate=rate,
        streams=streams or 10,
        duration=duration,
        warmup=warmup,
        most=most,
        clients=clients,
        timeout=timeout,
        read_ms=read_ms,
        drop_every=drop_every,
        agent=None if agent is None else _agent(agent),
        prompt=prompt,
        sync=sync,
    )
    seen = drive(plan, _talk(_ping(plan.endpoint, 0)), json_file, html_file)
    raise typer.Exit(INTERRUPTED if seen.interrupted else 0 if seen.is_good else FAILED)


# --- small things ----------------------------------------------------------------------------------


def _check_alone(context: typer.Context, option: str, *beside: str) -> None:
    """Refuse whatever else stands on the command line than an option and those that go with it."""
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source and source.name == "COMMANDLINE" and param.opts[0] not in (option, *beside):
            _fail(f"{option} puts no load on: leave {param.opts[0]} out", WRONG)


def _talk(talk: Coroutine[Any, Any, Any], as_json: bool = False) -> Any:
    """Run a conversation with the daemon; its failure becomes a message and an exit code."""
    try:
        return asyncio.run(talk)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except UnansweredError as error:
        _fail(str(error), FAILED)
    except AxonError as error:
        if as_json or not out.is_terminal:
            print_line({"kind": "error", **error.to_body()})
        code = WRONG if isinstance(error, RequestError) else NOT_NOW if isinstance(error, UnavailableError) else FAILED
        hint = "; start one with `axon-zmq serve`" if error.error_type == "unreachable" else ""
        _fail(f"{error}{hint}", code)


def _agent(text: str) -> Any:
    return _json_object(text, "the agent is") if text.startswith("{") else text


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        _fail(f"{what} not valid JSON: {error}", WRONG)
    if not isinstance(value, dict):
        _fail(f"{what} no JSON object: write {{…}}", WRONG)
    return value


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _run_options(
    model: str | None, timeout: float, output_schema: Path | None, tools: Path | None, log: Level | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout_ms": int(timeout * 1000), "model": model}
    if output_schema is not None:
        options["output_schema"] = _json_file(output_schema)
    if tools is not None:
        options["tools"] = _json_file(tools)
        if not isinstance(options["tools"], list) or not all(isinstance(tool, dict) for tool in options["tools"]):
            _fail(f'{tools} is no list of tools: write [{{"name": …, "parameters": …}}]', WRONG)
    if log is not None:
        options["log"] = log.value
    return options


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        _fail(f"{path} is no JSON: {error}", WRONG)


if __name__ == "__main__":
    main()
