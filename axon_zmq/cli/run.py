"""The commands `run`, `stream` and `call`: execute an agent or a tool, and answer its questions."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from axon_zmq.cli.conversation import converse
from axon_zmq.cli.json_lines import JsonLinesUI
from axon_zmq.cli.options import (
    PING_TIMEOUT_S,
    AsJson,
    Endpoint,
    ExitCode,
    Timeout,
    fail,
    frontend,
    in_lines,
    json_object,
    parse_agent,
    talk,
)
from axon_zmq.cli.output import print_event, print_result
from axon_zmq.cli.stdin import Lines
from axon_zmq.cli.terminal import TerminalUI
from axon_zmq.events import Complete
from axon_zmq.protocol.kinds import Mode

AgentName = Annotated[str, typer.Argument(help='A registered name, or an agent as JSON: \'{"model": "echo"}\'.')]
Prompt = Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")]
Model = Annotated[str | None, typer.Option(help="Model in place of the agent's, such as synthetic:tokens=20.")]
Schema = Annotated[
    Path | None, typer.Option(help="File with a JSON Schema that the answer must fit.", exists=True, dir_okay=False)
]


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
ANSWERING: Final = """\
On a terminal, calls of --tools and calls that want approval are asked for, and the run goes on with the
answers. Ctrl-D ends the answers: live calls fail, and a run that waits for approval ends with exit code 1.

In a pipe, each event is a JSON line. With --tools or --interactive, answers are JSON lines on standard input:

\b
  {"call_id": "…", "result": 5}             a tool's result; also "content", "metadata"
  {"call_id": "…", "error": {"message": "no", "retry": false}}
  {"approve": {"…": true}}                  by call_id; false or "a reason"; {…}: other arguments
  {"steer": "more to say"}                  to a run under way

A tool_call line wants its result while the run waits. After a complete line with "deferred", answer all of its
calls and approvals: the next run follows. A line that is not taken comes back as a refused line."""
"""Epilog of `run --help` and `stream --help`."""


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
    _converse(mode, agent, prompt, options, endpoint=endpoint, as_json=as_json, interactive=interactive)


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
    _converse("run_stream", agent, prompt, options, endpoint=endpoint, as_json=as_json, interactive=interactive)


def _converse(
    mode: Mode,
    agent: str,
    prompt: str,
    options: dict[str, Any],
    *,
    endpoint: str | None,
    as_json: bool,
    interactive: bool,
) -> None:
    """Hold a conversation at the terminal or in the pipe; exits if it fails."""
    tools = [tool.get("name") for tool in options.get("tools", ())]
    if prompt == "-" and (tools or interactive):
        fail("standard input is for answers: give the prompt as an argument", ExitCode.WRONG)
    if in_lines(as_json):
        ui = JsonLinesUI(Lines() if tools or interactive else None)
    else:
        ui = TerminalUI(Lines(), tools, mode == "run_stream")
    parsed, text = parse_agent(agent), sys.stdin.read() if prompt == "-" else prompt

    async def conversation() -> None:
        from axon_zmq.client import AsyncClient

        async with AsyncClient(frontend(endpoint)) as client:
            await client.ping(PING_TIMEOUT_S)
            await converse(client, mode, parsed, text, options, ui)

    talk(conversation(), as_json)


def _run_options(
    model: str | None, timeout: float, output_schema: Path | None, tools: Path | None, log: Level | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout_ms": int(timeout * 1000), "model": model}
    if output_schema is not None:
        options["output_schema"] = _json_file(output_schema)
    if tools is not None:
        options["tools"] = _json_file(tools)
        if not isinstance(options["tools"], list) or not all(isinstance(tool, dict) for tool in options["tools"]):
            fail(f'{tools} is no list of tools: write [{{"name": …, "parameters": …}}]', ExitCode.WRONG)
    if log is not None:
        options["log"] = log.value
    return options


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{path} is no JSON: {error}", ExitCode.WRONG)


def call(
    tool: Annotated[str, typer.Argument(help="The tool's name.")],
    args: Annotated[str, typer.Argument(help="Its arguments, as a JSON object.")] = "{}",
    agent: Annotated[str | None, typer.Option(help="The agent that has the tool.")] = None,
    timeout: Timeout = 600,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Call one Python tool of the daemon's, without a model, and print its result."""
    named = json_object(args, "the arguments are")

    async def conversation() -> Complete:
        from axon_zmq.client import AsyncClient

        async with AsyncClient(frontend(endpoint)) as client:
            await client.ping(PING_TIMEOUT_S)
            return await client.call_tool(tool, named, agent=agent, timeout_ms=int(timeout * 1000))

    done = talk(conversation(), as_json)
    if in_lines(as_json):
        print_event(done)
    else:
        print_result(done.result)
