"""What operators do, and what happens to supervisord: rolling restarts, scaling, kills; and a long run."""

from __future__ import annotations

import asyncio
import time

from axon_zmq import AsyncClient, Client
from axon_zmq.errors import AxonError
from axon_zmq.events import Complete
from axon_zmq.protocol.kinds import MODES
from bench.processes import Process
from chaos.agents import prompt, text
from chaos.promises import Report, Scenario
from chaos.scene import Supervised, descriptors, megabytes, scene, settled, supervised, until
from chaos.workers import started_once

PAUSE = 0.1
"""Seconds between two requests of one of the soak's clients."""
WINDOW_S = 120.0
"""Seconds until a worker keeps as many runs as it ever will, and its allocator has found its size."""
GROWTH = 8.0
"""MB that a process may grow from then on, however long it takes."""
FEW = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_WORKERS": "1", "AXON_RUN_STREAM_WORKERS": "2"}


def rolled(report: Report) -> None:
    """`axon-zmq roll` under load, again and again."""
    rolls = 1 if report.short else 25
    with supervised(**FEW, AXON_RUN_STREAM_SLOTS="20") as daemon:
        before = daemon.pids()
        asyncio.run(_rolled(report, daemon, rolls))
        after = daemon.pids()
        changed = {name for name in after if after[name] != before.get(name)}
        report.expect(changed == {"run_stream-1", "run_stream-2"}, f"changed: {changed}")
        started_once(report, daemon.starts())


async def _rolled(report: Report, daemon: Supervised, rolls: int) -> None:
    ends: list[object] = []
    stopping = False

    async def follow(client: AsyncClient, number: int) -> None:
        turn = 0
        while not stopping:
            turn += 1
            asked = prompt(f"roll-{number}-{turn}", 50, 0.02)
            ends.append(await settled(client.stream("paced", asked).complete()))

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
    report.done = f"{rolls} rolls of 2 workers ({2 * rolls} restarts) with 28 of 40 slots taken"
    report.measured(f"{len(ends)} streams, {len(failed)} failed; a roll took {max(seconds):.1f} s at the longest")
    report.expect(not failed, f"{len(failed)} failed, such as {failed[:1]}")


def scaled(report: Report) -> None:
    """`axon-zmq scale` up and down again."""
    with supervised(**FEW) as daemon, Client(daemon.endpoint) as client:
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
    report.expect({name: more[name] for name in before} == before == after, "others were touched")
    report.expect(workers == 4, f"{workers} workers")
    report.done = "run_stream from 2 to 4 and back"
    report.measured(f"2 more within {took:.1f} s; the pids of the others are the same")


def orphaned(report: Report) -> None:
    """supervisord is killed: everything under it ends, and the next start is clean."""
    times = 1 if report.short else 5
    gone: list[float] = []
    with supervised(**FEW) as daemon:
        for _ in range(times):
            daemon.family()["supervisord"].kill()
            began = time.monotonic()
            until(lambda: not daemon.family(), "the end of all processes", 10)
            gone.append(time.monotonic() - began)
            daemon.start()
            with Client(daemon.endpoint) as client:
                report.expect(client.run("echo", "again").result == "again", "it does not serve again")
    report.done = f"{times} kills"
    report.within("no process left after", gone, 5.0)


def soak(report: Report, seconds: float) -> None:
    """A steady load; memory and descriptors of each process, and the slope of both, once its window is full."""
    with scene(*MODES) as daemon:
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
                await asyncio.sleep(PAUSE)  # the window of kept runs shall hold the same number all the time
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
    later = [sample for sample in samples if sample[0] > min(WINDOW_S, seconds / 2)]
    for name in processes:
        memory, files = ([(at, now[name][which]) for at, now in later] for which in (0, 1))
        report.measured(
            f"{name}: {memory[-1][1]:.0f} MB {_slope(memory) * 60:+.2f} MB/min, {_slope(files) * 60:+.2f} files/min"
        )
        for what, points, most in (("MB", memory, GROWTH), ("files", files, 2)):
            growth = points[-1][1] - points[0][1]
            report.expect(growth <= most or seconds < 2 * WINDOW_S, f"{name} grew by {growth:.1f} {what}")
    report.done = f"{seconds:.0f} s, {done} requests"
    report.expect(failed == 0, f"{failed} requests failed")


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares: the growth of the second for each of the first."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


SCENARIOS = (
    Scenario("roll", "rolling restart", "0 failed requests", rolled),
    Scenario("scale", "scaling", "slots come and go without touching the others", scaled),
    Scenario("supervisord", "supervisord killed", "no orphans after 5 s; the next start is clean", orphaned),
)
