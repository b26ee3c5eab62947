"""Scenarios about operation: rolling restarts, scaling, a killed supervisord, and a long steady load."""

from __future__ import annotations

import asyncio
import time

from axon_zmq import AsyncClient, Client
from axon_zmq.errors import AxonError
from axon_zmq.events import Complete
from axon_zmq.protocol.kinds import MODES
from bench.processes import Process
from chaos.agents import prompt, text
from chaos.daemons import SupervisedDaemon, descriptors, megabytes, outcome, run_daemon, run_supervised, until
from chaos.promises import Report, Scenario
from chaos.workers import started_once

PAUSE_S = 0.1
"""Seconds between two requests of one client of the steady load."""
WARMUP_S = 120.0
"""Seconds until a worker's memory is steady: the resume window (60 s) is full, and the allocator has settled."""
MAX_GROWTH_MB = 8.0
"""Maximum accepted growth of a process's memory after the warm-up, however long the load lasts."""
FEW = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_WORKERS": "1", "AXON_RUN_STREAM_WORKERS": "2"}


def rolled(report: Report) -> None:
    """Run `axon-zmq roll` repeatedly under load."""
    rolls = 1 if report.short else 25
    with run_supervised(**FEW, AXON_RUN_STREAM_SLOTS="20") as daemon:
        before = daemon.pids()
        asyncio.run(_rolled(report, daemon, rolls))
        after = daemon.pids()
        changed = {name for name in after if after[name] != before.get(name)}
        report.expect(changed == {"run_stream-1", "run_stream-2"}, f"changed processes: {changed}")
        started_once(report, daemon.starts())


async def _rolled(report: Report, daemon: SupervisedDaemon, rolls: int) -> None:
    ends: list[object] = []
    stopping = False

    async def follow(client: AsyncClient, number: int) -> None:
        turn = 0
        while not stopping:
            turn += 1
            text = prompt(f"roll-{number}-{turn}", 50, 0.02)
            ends.append(await outcome(client.stream("paced", text).complete()))

    seconds: list[float] = []
    async with AsyncClient(daemon.endpoint) as client:
        load = [asyncio.create_task(follow(client, number)) for number in range(28)]  # of 40 slots
        for _ in range(rolls):
            began = time.monotonic()
            done = await asyncio.to_thread(daemon.command, "roll", "run_stream")
            report.expect(done.returncode == 0, f"roll failed: {done.stderr.strip()}")
            seconds.append(time.monotonic() - began)
        stopping = True
        await asyncio.wait(load, timeout=30)
    failed = [end for end in ends if not (isinstance(end, Complete) and end.result == text(50))]
    report.done = f"{rolls} rolls of 2 workers ({2 * rolls} restarts) with 28 of 40 slots busy"
    report.measured(f"{len(ends)} streams, {len(failed)} failed; longest roll {max(seconds):.1f} s")
    report.expect(not failed, f"{len(failed)} streams failed, such as {failed[:1]}")


def scaled(report: Report) -> None:
    """Run `axon-zmq scale` up and down again."""
    with run_supervised(**FEW) as daemon, Client(daemon.endpoint) as client:
        before = daemon.pids()
        began = time.monotonic()
        up = daemon.command("scale", "run_stream", "4")
        took = time.monotonic() - began
        more = daemon.pids()
        workers = client.ping()["modes"]["run_stream"]["workers"]
        down = daemon.command("scale", "run_stream", "2")
        after = daemon.pids()
    report.expect(up.returncode == down.returncode == 0, up.stderr + down.stderr)
    report.expect(more.keys() - before.keys() == {"run_stream-3", "run_stream-4"}, f"added: {more.keys()}")
    report.expect({name: more[name] for name in before} == before == after, "other workers were restarted")
    report.expect(workers == 4, f"{workers} workers")
    report.done = "run_stream from 2 to 4 and back"
    report.measured(f"2 workers added within {took:.1f} s; pids of the others unchanged")


def orphaned(report: Report) -> None:
    """Kill supervisord: all its processes end, and the next start succeeds."""
    times = 1 if report.short else 5
    durations: list[float] = []
    with run_supervised(**FEW) as daemon:
        for _ in range(times):
            daemon.family()["supervisord"].kill()
            began = time.monotonic()
            until(lambda: not daemon.family(), "the end of all processes", 10)
            durations.append(time.monotonic() - began)
            daemon.start()
            with Client(daemon.endpoint) as client:
                report.expect(client.run("echo", "again").result == "again", "the restarted daemon does not serve")
    report.done = f"{times} kills"
    report.within("no process left after", durations, 5.0)


def soak(report: Report, seconds: float) -> None:
    """Run a steady load, and check that memory and file descriptors of each process do not grow after the warm-up."""
    with run_daemon(*MODES) as daemon:
        processes = {"broker": daemon.broker, **daemon.workers}
        asyncio.run(_soak(report, daemon.endpoint, processes, seconds))


async def _soak(report: Report, endpoint: str, processes: dict[str, Process], seconds: float) -> None:
    samples: list[tuple[float, dict[str, tuple[float, int]]]] = []
    done = failed = 0
    began = time.monotonic()
    async with AsyncClient(endpoint) as client:

        async def follow(number: int) -> None:
            nonlocal done, failed
            while time.monotonic() < began + seconds:
                # At a fixed rate, the number of ended runs within the resume window is constant, and the memory too.
                await asyncio.sleep(PAUSE_S)
                try:
                    if number % 3 == 0:
                        await client.stream("paced", prompt(f"soak-{number}", 20, 0.01)).complete()
                    elif number % 3 == 1:
                        await client.run("echo", "soak")
                    else:
                        await client.run_sync("echo", "soak")
                    done += 1
                except AxonError:
                    failed += 1

        load = [asyncio.create_task(follow(number)) for number in range(12)]
        while time.monotonic() < began + seconds:
            await asyncio.sleep(min(5.0, seconds / 20))
            now = {name: (megabytes(each.pid), descriptors(each.pid)) for name, each in processes.items()}
            samples.append((time.monotonic() - began, now))
        await asyncio.wait(load, timeout=30)
    later = [sample for sample in samples if sample[0] > min(WARMUP_S, seconds / 2)]
    for name in processes:
        memory, files = ([(at, now[name][which]) for at, now in later] for which in (0, 1))
        report.measured(
            f"{name}: {memory[-1][1]:.0f} MB {_slope(memory) * 60:+.2f} MB/min, {_slope(files) * 60:+.2f} files/min"
        )
        for what, points, most in (("MB", memory, MAX_GROWTH_MB), ("files", files, 2)):
            growth = points[-1][1] - points[0][1]
            report.expect(growth <= most or seconds < 2 * WARMUP_S, f"{name} grew by {growth:.1f} {what}")
    report.done = f"{seconds:.0f} s, {done} requests"
    report.expect(failed == 0, f"{failed} requests failed")


def _slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of a least-squares line through (x, y) points."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


SCENARIOS = (
    Scenario("roll", "rolling restart", "0 failed requests", rolled),
    Scenario("scale", "scaling", "workers are added and removed without touching the others", scaled),
    Scenario("supervisord", "supervisord killed", "no process left after 5 s; the next start succeeds", orphaned),
)
