"""The Python clients: with a daemon, and without one."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
import zmq

from axon_zmq import AsyncClient, AxonError, Client
from axon_zmq.events import Chunk, Complete
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, wait_until

NOBODY = "tcp://127.0.0.1:1"


@pytest.mark.parametrize("face", [AsyncClient, Client])
def test_an_invalid_endpoint_or_identity_is_rejected_at_once(face):
    with pytest.raises(ValueError, match="expected tcp://HOST:PORT or ipc://PATH"):
        face("nonsense")
    with pytest.raises(ValueError, match="expected tcp://HOST:PORT"):
        face("tcp://127.0.0.1")
    for identity in ("\u00e9", "", "x" * 201):
        with pytest.raises(ValueError, match="expected 1 to 200 ASCII characters"):
            face(NOBODY, identity=identity)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_failed_connect_leaves_nothing_behind():
    async def enter() -> None:
        before = open_files()
        with pytest.raises(zmq.ZMQError):
            await AsyncClient("tcp://*:1").__aenter__()
        assert open_files() == before

    asyncio.run(enter())
    before = threading.active_count()
    with pytest.raises(zmq.ZMQError):
        Client("tcp://*:1").__enter__()
    assert threading.active_count() == before


def test_closing_a_stream_ends_its_readers():
    async def talk() -> None:
        async with AsyncClient(NOBODY) as client:
            stream = client.stream("echo", "x")
            waiting = [asyncio.ensure_future(anext(stream, None)) for _ in range(2)]
            await asyncio.sleep(0)
            await stream.aclose()
            first, second = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(first, AxonError)
            assert first.error_type == "cancelled"
            assert second is None
            assert await anext(stream, None) is None

            stream = client.stream("echo", "x")
            await stream.aclose()
            with pytest.raises(AxonError, match="cancelled"):
                await anext(stream)
            left_open = client.stream("echo", "x")
        with pytest.raises(AxonError, match="the client was closed"):
            await anext(left_open)
        await left_open.aclose()

    asyncio.run(talk())


def test_closing_a_stream_ends_the_thread_that_reads_it():
    outcome: list[AxonError] = []
    with Client(NOBODY) as client:
        stream = client.stream("echo", "x")

        def read() -> None:
            reading.set()
            try:
                next(stream, None)
            except AxonError as error:
                outcome.append(error)

        reading = threading.Event()
        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(WAIT_TIMEOUT_S)
        time.sleep(0.1)  # The thread probably waits now; if not, the outcome is the same.
        stream.close()
        thread.join(WAIT_TIMEOUT_S)
        assert [error.error_type for error in outcome] == ["cancelled"]
    stream.close()


def test_the_async_client_can_be_used_only_inside_with():
    async def talk() -> None:
        client = AsyncClient(NOBODY)
        for _ in ("before", "after"):
            for call in (
                lambda: client.run("echo", "x"),
                lambda: client.ping(),
                lambda: client.describe(),
                lambda: client.cancel("1"),
            ):
                with pytest.raises(RuntimeError, match=r"use it as `async with AsyncClient\(\) as client`"):
                    await call()
            with pytest.raises(RuntimeError, match="use it as"):
                client.stream("echo", "x")
            assert "0 open" in repr(client)
            async with client:
                with pytest.raises(RuntimeError, match="already connected"):
                    await client.__aenter__()

    asyncio.run(talk())


def test_the_blocking_client_can_be_used_only_inside_with():
    client = Client(NOBODY)
    for _ in ("before", "after"):
        for call in (
            lambda: client.run("echo", "x"),
            lambda: client.stream("echo", "x"),
            lambda: client.ping(),
            lambda: client.cancel("1"),
        ):
            with pytest.raises(RuntimeError, match=r"use it as `with Client\(\) as client`"):
                call()
        with client, pytest.raises(RuntimeError, match="already connected"):
            client.__enter__()


def test_the_async_client_serves_many_requests_at_a_time(daemon: Daemon):
    async def talk() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            answers = await asyncio.gather(*(client.run("echo", f"number {n}") for n in range(50)))
            assert [answer.result for answer in answers] == [f"number {n}" for n in range(50)]

            async def read(n: int) -> str:
                stream = client.stream({"model": f"synthetic:tokens={n},delay_ms=1"}, "x")
                return "".join([event.data async for event in stream if isinstance(event, Chunk)])

            texts = await asyncio.gather(*(read(n) for n in range(1, 30)))
            assert [len(text) for text in texts] == [5 * n for n in range(1, 30)]

    asyncio.run(talk())


def test_leaving_a_stream_early_cancels_the_run(daemon: Daemon):
    async def talk() -> bytes:
        async with AsyncClient(daemon.endpoint) as client:
            async with client.stream({"model": "synthetic:tokens=5000"}, "x") as stream:
                await anext(stream)
            pong = await client.ping()
            while pong["modes"]["run_stream"]["free"] < 1024:
                pong = await client.ping()
            return stream.id

    id = asyncio.run(talk())
    wait_until(lambda: _cancelled(daemon, "run_stream-3", id.decode()), "the end of the run")


def test_cancelling_a_task_cancels_its_run(daemon: Daemon):
    async def talk() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.run({"model": "synthetic:tokens=500"}, "x", id="given-up"), 0.3)
            await client.run("echo", "x")

    asyncio.run(talk())
    wait_until(lambda: _cancelled(daemon, "run-2", "given-up"), "the end of the run")


def _cancelled(daemon: Daemon, worker: str, id: str) -> bool:
    return any(f"id={id}" in line and "cancelled" in line for line in daemon.log(worker).splitlines())


def test_a_cancelled_run_raises_with_its_partial_answer(client: Client):
    stream = client.stream({"model": "synthetic:tokens=500"}, "x")
    first = next(stream)
    stream.cancel()
    with pytest.raises(AxonError) as caught:
        stream.complete()
    assert caught.value.details["partial"]["text"].startswith(first.data)
    assert list(stream) == []


def test_the_blocking_client_can_be_used_from_several_threads(client: Client):
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        answers[n] = client.run("echo", f"thread {n}").result

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {n: f"thread {n}" for n in range(8)}


def test_closing_the_client_ends_all_waiting_readers(daemon: Daemon):
    outcome: list[AxonError] = []
    pieces: list[Chunk] = []
    with Client(daemon.endpoint) as client:
        stream = client.stream({"model": "synthetic:tokens=5000"}, "x")

        def read() -> None:
            try:
                pieces.extend(stream)
            except AxonError as error:
                outcome.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: len(pieces) >= 3, "chunks in the other thread")
    thread.join(WAIT_TIMEOUT_S)
    assert not thread.is_alive()
    assert outcome
    assert outcome[0].error_type == "cancelled"


def test_events_are_typed(client: Client):
    accepted, chunk, complete = client.stream("echo", "hi", ack=True)
    assert accepted.duplicate is False
    assert chunk == Chunk(1, "text", "hi", 1, 0)
    assert isinstance(complete, Complete)
    assert (complete.seq, complete.result, complete.model) == (2, "hi", "echo")


def test_an_unreachable_daemon_is_reported_after_the_timeout():
    with Client(NOBODY) as client, pytest.raises(AxonError) as caught:
        client.ping(0.2)
    assert caught.value.error_type == "unreachable"
    assert caught.value.retryable
