"""The commands `loadtest` and `conformance`: check a running daemon, or a client library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from axon_zmq.cli.inspection import fetch_pong
from axon_zmq.cli.options import AsJson, Endpoint, ExitCode, check_alone, fail, frontend, parse_agent, talk
from axon_zmq.loadtest.plan import Plan, Scenario, check_target


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
        raise typer.Exit(0 if play(endpoint, only or [], patience, as_json) else ExitCode.FAILED)
    driver.drive(endpoint)


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
        check_alone(context, "--compare", "--json", "--html")
        compare_reports(*compare, json_file, html_file)
        return
    if rate is not None and streams is not None:
        fail("--rate is by schedule, --streams is so many at a time: give one of them", ExitCode.WRONG)
    plan = Plan(
        endpoint=check_target(frontend(endpoint), remote),
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
        agent=None if agent is None else parse_agent(agent),
        prompt=prompt,
        sync=sync,
    )
    seen = drive(plan, talk(fetch_pong(plan.endpoint)), json_file, html_file)
    raise typer.Exit(ExitCode.INTERRUPTED if seen.interrupted else 0 if seen.is_good else ExitCode.FAILED)
