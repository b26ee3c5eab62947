"""The commands `run`, `stream` and `call`: execute an agent or a tool, and answer its tool calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic_core import from_json

from axon_zmq.cli.conversation import converse
from axon_zmq.cli.json_lines import JsonLinesUI
from axon_zmq.cli.options import (
    PING_TIMEOUT_S,
    AsJson,
    Endpoint,
    ExitCode,
    Timeout,
    complete,
    fail,
    frontend,
    json_object,
    one_of,
    parse_agent,
    prints_json,
    run_or_exit,
)
from axon_zmq.cli.output import print_event, print_result
from axon_zmq.cli.stdin import Lines, read_all
from axon_zmq.cli.terminal import TerminalUI
from axon_zmq.events import Complete
from axon_zmq.protocol.kinds import Mode

AgentName = Annotated[
    str,
    typer.Argument(help='Name of a registered agent, or an agent as JSON: \'{"model": "echo"}\'.', metavar="AGENT"),
]
Prompt = Annotated[str, typer.Argument(help="Prompt; - reads it from standard input.", metavar="PROMPT")]
Model = Annotated[str | None, typer.Option(help="Model to use instead of the agent's, such as synthetic:tokens=20.")]
Schema = Annotated[
    Path | None, typer.Option(help="File with a JSON Schema that the answer must match.", exists=True, dir_okay=False)
]


Tools = Annotated[
    Path | None,
    typer.Option(
        help="File with a JSON list of tools whose calls you answer: "
        '[{"name": …, "description": …, "parameters": {JSON Schema}}].',
        exists=True,
        dir_okay=False,
    ),
]
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
Log = Annotated[
    str | None,
    typer.Option(
        help=f"Print the agent's log records from this level: {', '.join(_LEVELS)}.",
        metavar="LEVEL",
        callback=one_of(_LEVELS),
        autocompletion=complete(_LEVELS),
    ),
]
Interactive = Annotated[
    bool,
    typer.Option(
        "--interactive",
        "-i",
        help="Read answers from standard input. Always on with --tools, and on a terminal.",
    ),
]
ANSWERING: Final = """\
On a terminal, the command asks you for the result of each call of a tool from --tools, and for each approval. The run
continues with your answers. Ctrl-D ends the answers: open tool calls fail, and a run that waits for an approval ends
with exit code 1.

In a pipe, each event is printed as a JSON line. With --tools or --interactive, answers are read from standard
input, one JSON line each:

\b
  {"call_id": "…", "result": 5}          result of a tool call;
                                         also "content", "metadata"
  {"call_id": "…", "error": {"message": "no", "retry": false}}
  {"approve": {"…": true}}               by call_id: true, false, a reason
                                         to refuse, or other arguments
  {"steer": "more to say"}               message to the running agent

Answer each tool_call line while the run waits. After a complete line with "deferred", answer all of its calls and
approvals; the next run then starts. The command reports an invalid line with a line of kind "refused"."""
"""How to answer tool calls: the end of `run --help` and `stream --help`."""


def run(
    agent: AgentName,
    prompt: Prompt,
    sync: Annotated[bool, typer.Option("--sync", help="Use mode run_sync instead of run.")] = False,
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
    all_events: Annotated[
        bool, typer.Option("--all-events", help="Print every event of pydantic-ai, not only text and tool events.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Run an agent and print its answer while it is generated."""
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
    """Run an agent until its tool calls and approvals are answered; exit with an error if the run fails."""
    tools = [tool.get("name") for tool in options.get("tools", ())]
    if prompt == "-" and (tools or interactive):
        fail(
            "standard input is read for answers (--tools, --interactive): give the prompt as an argument",
            ExitCode.INVALID,
        )
    if prints_json(as_json):
        ui = JsonLinesUI(Lines() if tools or interactive else None)
    else:
        ui = TerminalUI(Lines(), tools, mode == "run_stream")
    parsed, text = parse_agent(agent), read_all("the prompt") if prompt == "-" else prompt

    async def conversation() -> None:
        from axon_zmq.client import AsyncClient

        async with AsyncClient(frontend(endpoint)) as client:
            # The ping fails after 2 s if no daemon answers. The run itself would wait for a daemon until its timeout.
            await client.ping(PING_TIMEOUT_S)
            await converse(client, mode, parsed, text, options, ui)

    run_or_exit(conversation(), as_json)


def _run_options(
    model: str | None, timeout: float, output_schema: Path | None, tools: Path | None, log: str | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout_ms": int(timeout * 1000), "model": model}
    if output_schema is not None:
        options["output_schema"] = _json_file(output_schema)
    if tools is not None:
        options["tools"] = _json_file(tools)
        if not isinstance(options["tools"], list) or not all(isinstance(tool, dict) for tool in options["tools"]):
            fail(f'invalid tools in {tools}: expected a list [{{"name": …, "parameters": …}}]', ExitCode.INVALID)
    if log is not None:
        options["log"] = log
    return options


def _json_file(path: Path) -> Any:
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        fail(f"{path} is not valid JSON: {error}", ExitCode.INVALID)


def call(
    tool: Annotated[str, typer.Argument(help="Name of the tool.", metavar="TOOL")],
    args: Annotated[str, typer.Argument(help="Arguments of the tool, as a JSON object.", metavar="ARGS")] = "{}",
    agent: Annotated[str | None, typer.Option(help="Agent that has the tool.")] = None,
    timeout: Timeout = 600,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Call one Python tool of the daemon, without a model.

    The result is printed. Without --agent, exactly one agent, toolset or MCP server must have the tool.
    """
    named = json_object(args, "arguments")

    async def conversation() -> Complete:
        from axon_zmq.client import AsyncClient

        async with AsyncClient(frontend(endpoint)) as client:
            await client.ping(PING_TIMEOUT_S)
            return await client.call_tool(tool, named, agent=agent, timeout_ms=int(timeout * 1000))

    done = run_or_exit(conversation(), as_json)
    if prints_json(as_json):
        print_event(done)
    else:
        print_result(done.result)
