"""The commands `loadtest` and `conformance`: test a running daemon or a client library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from axon_zmq.cli.inspection import fetch_pong
from axon_zmq.cli.options import (
    MAX_SECONDS,
    AsJson,
    Endpoint,
    ExitCode,
    check_exclusive,
    complete,
    fail,
    frontend,
    number_option,
    one_of,
    parse_agent,
    run_or_exit,
)
from axon_zmq.loadtest.plan import Plan, Scenario, check_target

_SCENARIOS = tuple(scenario.value for scenario in Scenario)


def conformance(
    server: Annotated[
        bool, typer.Option("--server", help="Run the scripted broker. Without it, run the Python client as an example.")
    ] = False,
    endpoint: Annotated[
        str, typer.Option(help="Endpoint to listen on; without --server, to connect to.")
    ] = "tcp://127.0.0.1:5571",
    only: Annotated[list[str] | None, typer.Option(help="Run only this case; can be repeated.")] = None,
    patience: Annotated[
        float, number_option("Seconds without a message after which the test ends.", 1, MAX_SECONDS)
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Check that a client in any language follows the protocol.

    With --server, this command is a scripted broker, which repeats and loses messages, and restarts. The client under
    test connects to the broker and reports which messages it received. The exit code is 1 if the client breaks a rule
    of the protocol.
    """
    from axon_zmq.cli.conformance import run_server
    from axon_zmq.conformance import driver

    if server:
        raise typer.Exit(0 if run_server(endpoint, only or [], patience, as_json) else ExitCode.FAILED)
    driver.drive(endpoint)


def loadtest(
    context: typer.Context,
    scenario: Annotated[
        str,
        typer.Argument(
            help=f"Requests to send: {', '.join(_SCENARIOS)}.",
            metavar="SCENARIO",
            callback=one_of(_SCENARIOS),
            autocompletion=complete(_SCENARIOS),
        ),
    ] = Scenario.STREAMS.value,
    rate: Annotated[
        float | None,
        number_option("Send this many requests per second, on a fixed schedule.", 0.01, 100_000),
    ] = None,
    streams: Annotated[
        int | None, number_option("Keep this many requests open (default without --rate: 10).", 1, 100_000)
    ] = None,
    duration: Annotated[float, number_option("Seconds to measure.", 0.1, 86_400)] = 10,
    warmup: Annotated[float, number_option("Seconds of load before the measurement.", 0, 86_400)] = 2,
    most: Annotated[int, number_option("Largest total number of requests.", 1, 1_000_000_000)] = 100_000,
    clients: Annotated[int, number_option("Number of client connections.", 1, 64)] = 8,
    agent: Annotated[str | None, typer.Option(help="Agent to run instead of the offline ones: a name or JSON.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt to send instead of the built-in ones.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Use mode run_sync instead of run.")] = False,
    timeout: Annotated[float, number_option("Seconds after which a request is ended.", 0.001, 86_400)] = 30,
    read_ms: Annotated[
        float, number_option("Milliseconds for which a slow reader pauses after each chunk.", 0, 60_000)
    ] = 100,
    drop_every: Annotated[float, number_option("Seconds between two drops of the same connection.", 2.5, 86_400)] = 3,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report to this file as JSON.", dir_okay=False, writable=True),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write the report to this file as HTML, with plots.", dir_okay=False, writable=True
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Compare two JSON reports instead of running a test.")
    ] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Allow an endpoint on another machine.")] = False,
    endpoint: Endpoint = None,
) -> None:
    """Put load on a running daemon and measure latency and failures.

    The exit code is 1 if a request or a check failed or no request was measured, and 130 after Ctrl-C.
    """
    from axon_zmq.loadtest import require_extra

    require_extra()
    from axon_zmq.cli.loadtest import compare as compare_reports
    from axon_zmq.cli.loadtest import drive

    if compare is not None:
        check_exclusive(context, "--compare", "--json", "--html")
        compare_reports(*compare, json_file, html_file)
        return
    if rate is not None and streams is not None:
        fail("--rate and --streams cannot be combined: remove one of them", ExitCode.INVALID)
    plan = Plan(
        endpoint=check_target(frontend(endpoint), remote),
        scenario=Scenario(scenario),
        rate=rate,
        streams=streams or 10,
        duration=duration,
        warmup=warmup,
        most=most,
        clients=clients,
        timeout=timeout,
        read_ms=read_ms,
        drop_every=drop_every,
        agent=None if agent is None else parse_agent(agent),
        prompt=prompt,
        sync=sync,
    )
    seen = drive(plan, run_or_exit(fetch_pong(plan.endpoint)), json_file, html_file)
    raise typer.Exit(ExitCode.INTERRUPTED if seen.interrupted else 0 if seen.is_good else ExitCode.FAILED)
