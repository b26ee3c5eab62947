"""Scenarios about workers: killed, hung, in a crash loop, and killed by a request."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from axon_zmq import AsyncClient, Client
from axon_zmq.errors import AxonError
from axon_zmq.events import Complete
from chaos.agents import prompt, text
from chaos.daemons import Daemon, outcome, run_daemon, run_supervised, until
from chaos.promises import Report, Scenario

NOTICE_TIMEOUT_S = 0.25
"""Seconds from the death of a worker in which its clients must get `worker_lost`."""
HANG_SECONDS = 2
"""Value of `AXON_HANG_SECONDS`."""


@dataclass
class Stream:
    """One stream of the load, as its client received it."""

    name: str
    tokens: int
    data: list[str] = field(default_factory=list[str])
    end: Complete | AxonError | None = None
    ended_at: float = 0.0


class Load:
    """Keeps a number of streams open until `stop`; each ended stream is replaced by a new one."""

    def __init__(self, client: AsyncClient, at_a_time: int, tokens: int, seconds: float) -> None:
        self.streams: list[Stream] = []
        self._client = client
        self._pace = (tokens, seconds)
        self._names = count()
        self._stopping = False
        self._tasks = [asyncio.create_task(self._follow()) for _ in range(at_a_time)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        tokens, seconds = self._pace
        while not self._stopping:
            stream = Stream(f"load-{next(self._names)}", tokens)
            self.streams.append(stream)
            try:
                async for event in self._client.stream("paced", prompt(stream.name, tokens, seconds)):
                    if isinstance(event, Complete):
                        stream.end = event
                    else:
                        stream.data.append(event.data)
            except AxonError as error:
                stream.end = error
            stream.ended_at = time.monotonic()

    async def stop(self, seconds: float) -> None:
        """Start no more streams, and wait until the open ones have ended."""
        self._stopping = True
        await asyncio.wait(self._tasks, timeout=seconds)

    def check(self, report: Report, victims: dict[str, float]) -> dict[str, int]:
        """Check that each stream ended, either complete or with `worker_lost` because its worker was killed.

        Args:
            report: Report for the broken promises.
            victims: Killed workers and the time just before each kill.

        Returns:
            The number of streams by outcome.
        """
        tally = {"complete": 0, "lost": 0, "hung": 0}
        for stream in self.streams:
            if stream.end is None:
                tally["hung"] += 1
                report.broken.append(f"{stream.name} never ended")
            elif isinstance(stream.end, Complete):
                tally["complete"] += 1
                whole = "".join(stream.data) == stream.end.result == text(stream.tokens)
                report.expect(whole, f"{stream.name} is not complete")
            elif stream.end.error_type == "worker_lost" and _lost_with_killed_worker(stream, victims):
                tally["lost"] += 1
            else:
                report.broken.append(f"{stream.name} ended as {stream.end}")
        return tally


def _lost_with_killed_worker(stream: Stream, victims: dict[str, float]) -> bool:
    """Return whether the error message of a stream names a worker that was killed before."""
    message = str(stream.end)
    named = [name for name in victims if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", message)]
    return len(named) == 1 and stream.ended_at > victims[named[0]]


def started_once(report: Report, starts: dict[str, int], most: int = 1) -> None:
    """Check that no run was started more than `most` times."""
    again = [name for name, times in starts.items() if times > most]
    report.measured(f"{len(again)} of {len(starts)} runs started {'twice' if most == 1 else 'too often'}")
    report.expect(not again, f"{len(again)} runs were started more than {most} times, such as {again[:1]}")


def killed(report: Report) -> None:
    """Kill workers repeatedly under load."""
    kills = 12 if report.short else 200
    with run_daemon("run_stream", "run_stream") as daemon:
        asyncio.run(_killed(report, daemon, kills))
        started_once(report, daemon.starts())


async def _killed(report: Report, daemon: Daemon, kills: int) -> None:
    notices: list[float] = []
    victims: dict[str, float] = {}
    async with AsyncClient(daemon.endpoint) as client, Load(client, at_a_time=24, tokens=60, seconds=0.02) as load:
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.1, 0.4))
            victim = random.choice(list(daemon.workers))
            victims[victim] = time.monotonic()
            ended_at = daemon.kill_worker(victim)
            name = daemon.start_worker("run_stream")
            await asyncio.sleep(2 * NOTICE_TIMEOUT_S)
            lost = [stream for stream in load.streams if isinstance(stream.end, AxonError)]
            notices += [stream.ended_at - ended_at for stream in lost if stream.ended_at > ended_at]
            await asyncio.to_thread(daemon.wait_for_worker, name)
        await load.stop(20)
    tally = load.check(report, victims)
    report.done = f"{kills} kills under {len(load.streams)} streams, 24 at a time"
    report.measured(f"{tally['lost']} streams lost, {tally['complete']} complete, {tally['hung']} hung")
    report.expect(tally["lost"] > kills, "too few streams were lost: the load was too small to test anything")
    report.expect(tally["complete"] > 0, "no stream was completed")
    report.within("worker_lost after the death", notices, NOTICE_TIMEOUT_S)


def tried_again(report: Report) -> None:
    """Kill workers before they have sent a message: with `max_attempts` 3, runs are started again and succeed."""
    kills = 3 if report.short else 20
    with run_daemon("run", "run", "run") as daemon:
        asyncio.run(_tried_again(report, daemon, kills))
        starts = daemon.starts()
        started_once(report, starts, most=3)
        report.expect(max(starts.values()) > 1, "no run was started again")


async def _tried_again(report: Report, daemon: Daemon, kills: int) -> None:
    async with AsyncClient(daemon.endpoint) as client:
        ends: list[object] = []
        for number in range(kills):
            runs = [
                client.run("paced", prompt(f"again-{number}-{each}", 20, 0.02), max_attempts=3) for each in range(6)
            ]
            gathered = asyncio.gather(*map(outcome, runs))
            await asyncio.sleep(0.2)
            daemon.kill_worker(random.choice(list(daemon.workers)))
            name = daemon.start_worker("run")
            ends += await gathered
            await asyncio.to_thread(daemon.wait_for_worker, name)
    failed = [end for end in ends if not isinstance(end, Complete)]
    report.done = f"{kills} kills under {len(ends)} runs"
    report.measured(f"{len(ends) - len(failed)} of {len(ends)} answered")
    report.expect(not failed, f"{len(failed)} runs failed, such as {failed[:1]}")


def hung(report: Report) -> None:
    """Make workers hang, by a busy loop in an `async def` tool or by SIGSTOP: the broker must kill them."""
    times = 1 if report.short else 20
    noticed: dict[str, list[float]] = {"busy loop": [], "SIGSTOP": []}
    with run_daemon("run", "run", broker={"hang_seconds": HANG_SECONDS}) as daemon, Client(daemon.endpoint) as client:
        for number in range(2 * times):
            kind = list(noticed)[number % 2]
            victim = _hang(daemon, client, kind, number)
            began = time.monotonic()
            process = daemon.workers.pop(victim)
            if not process.ended(HANG_SECONDS + 10):
                report.broken.append(f"{victim} was not killed ({kind})")
                process.stop()
            noticed[kind].append(time.monotonic() - began)
            daemon.wait_for_worker(daemon.start_worker("run"))
            report.expect(client.run("echo", "others").result == "others", "other requests were not served")
    for kind, seconds in noticed.items():
        report.within(f"{kind}: killed after", seconds, HANG_SECONDS + 1.5)
    replaced = [_replaced() for _ in range(1 if report.short else 3)]
    report.within("replaced by supervisord, after SIGSTOP", replaced, HANG_SECONDS + 10)
    report.done = f"{times} per kind of hang, and {len(replaced)} under supervisord; AXON_HANG_SECONDS={HANG_SECONDS}"


def _replaced() -> float:
    """Return the seconds from SIGSTOP until the next process of the worker has registered."""
    few = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_WORKERS": "1", "AXON_RUN_STREAM_WORKERS": "0"}
    with run_supervised(**few, AXON_HANG_SECONDS=str(HANG_SECONDS)) as daemon:
        hung = daemon.pids()["run-1"]
        os.kill(hung, signal.SIGSTOP)
        began = time.monotonic()
        until(lambda: [worker["pid"] for worker in daemon.status()["workers"]] not in ([], [hung]), "another", 60)
        return time.monotonic() - began


def _hang(daemon: Daemon, client: Client, kind: str, number: int) -> str:
    """Make a worker hang, and return its name."""
    if kind == "SIGSTOP":
        victim = random.choice(list(daemon.workers))
        daemon.workers[victim].signal(signal.SIGSTOP)
        return victim
    stream = client.stream("busy", f"busy-{number}", mode="run")
    until(lambda: any(worker["busy"] for worker in daemon.status()["workers"]), "the run's start")
    [victim] = [worker["name"] for worker in daemon.status()["workers"] if worker["busy"]]
    del stream
    return victim


def poison(report: Report) -> None:
    """Send a request that kills its worker repeatedly, from two clients."""
    with run_daemon("run", "run", "run") as daemon, Client(daemon.endpoint) as client, Client(daemon.endpoint) as other:
        ends: list[str] = []
        for sender in (client, other, client, other):
            with suppress(AxonError):
                sender.run("poison", "the same for all", max_attempts=10)
            ends.append(_error_type(sender, "poison", "the same for all"))
        until(lambda: len(daemon.status()["workers"]) == 1, "the loss of two workers")
        dead = sum(process.ended(0.01) for process in daemon.workers.values())
        report.expect(client.run("echo", "others").result == "others", "other requests were not served")
        report.measured(f"{dead} workers died, then: {ends[-1]}")
        report.expect(dead == 2, f"one request killed {dead} workers")
        report.expect(set(ends) == {"quarantined"}, f"requests ended as {ends}")
    report.done = "8 requests of 2 clients, max_attempts 10"


def _error_type(client: Client, agent: str, text: str) -> str:
    try:
        client.run(agent, text)
    except AxonError as error:
        return error.error_type
    return "complete"


def crash_loop(report: Report) -> None:
    """Crash the worker of one mode repeatedly, under supervisord."""
    env = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_WORKERS": "1", "AXON_RUN_STREAM_WORKERS": "1"}
    crashes = 4 if report.short else 6
    with run_supervised(**env) as daemon, Client(daemon.endpoint) as client:
        for number in range(crashes):
            until(lambda: client.ping()["modes"]["run"]["workers"] == 1, "the worker", 60)
            report.expect(_error_type(client, "poison", f"crash {number}") == "worker_lost", "the worker did not crash")
            report.expect(
                client.stream("echo", "others").complete().result == "others", "other requests were not served"
            )
        modes = client.ping()["modes"]
        report.expect(modes["run"]["degraded"], "the mode is not degraded")
        report.expect(not modes["run_stream"]["degraded"], "another mode is degraded")
        log = daemon.run_dir / "run-1.log"

        def delays() -> list[str]:
            return re.findall(r"was started .*: wait(?:s|ing) (\d+ s)", log.read_text())

        until(lambda: len(delays()) >= crashes - 2, "a delayed restart", 10)
        report.measured(f"delays before restarts: {', '.join(delays())}; the other mode served {crashes} runs")
    report.done = f"{crashes} crashes of one worker"


SCENARIOS = (
    Scenario("killed", "worker killed during runs", "`worker_lost` within 250 ms, other runs unaffected", killed),
    Scenario(
        "again",
        "worker killed before its first message, `max_attempts: 3`",
        "run started again and answered",
        tried_again,
    ),
    Scenario("hung", "worker hung", "killed within `AXON_HANG_SECONDS` + 1.5 s, replaced", hung),
    Scenario("poison", "a request that kills workers", "kills at most 2 workers, then `quarantined`", poison),
    Scenario("crashes", "crash loop", "the mode is `degraded`, other modes serve, restarts are delayed", crash_loop),
)
