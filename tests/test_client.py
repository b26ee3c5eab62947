"""The Python client: its core in memory, its two faces against the daemon."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import zmq

from axon_zmq import AsyncClient, AxonError, Client
from axon_zmq.client.core import ANSWER_GRACE_S, RESUME_INTERVAL_S, SILENCE_TIMEOUT_S, ClientCore
from axon_zmq.events import Chunk, Complete
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack, unpack
from tests.conftest import Daemon, wait_until

# --- the core, in memory ---------------------------------------------------------------------------


def started(core: ClientCore, now: float = 0.0, **options):
    run = core.run("run_stream", "echo", "x", {"id": "1", **options}, now)
    core.outgoing.clear()
    return run


def message(core: ClientCore, kind: bytes, now: float = 0.0, **body):
    return core.receive([kind, b"1", pack(body)], now)


def chunk(core: ClientCore, seq: int, now: float = 0.0):
    return message(core, b"chunk", now, seq=seq, type="text", data=str(seq), step=1, part=0)


def sent(core: ClientCore) -> list[tuple[bytes, dict]]:
    kinds = [(frames[0], unpack(frames[2], "header") if len(frames) > 2 else {}) for frames in core.outgoing]
    core.outgoing.clear()
    return kinds


def test_messages_are_taken_in_order_only():
    core = ClientCore()
    run = started(core)
    assert chunk(core, 1) is run
    assert chunk(core, 1) is None  # a repetition
    assert chunk(core, 3) is None  # a gap: dropped, and asked for once
    assert chunk(core, 4) is None
    assert sent(core) == [(b"resume", {"from": 2})]
    assert chunk(core, 2, 0.1) is run
    assert [event.seq for event in run.inbox] == [1, 2]
    chunk(core, 5, 1 + RESUME_INTERVAL_S)
    assert sent(core) == [(b"resume", {"from": 3})]


def test_a_terminal_behind_a_gap_waits_for_what_is_missing():
    core = ClientCore()
    run = started(core)
    assert message(core, b"complete", seq=2, result="x") is None
    assert not run.ended
    assert sent(core) == [(b"resume", {"from": 1})]


def test_a_gap_that_cannot_be_filled_ends_the_run_loudly():
    core = ClientCore()
    run = started(core)
    message(core, b"resumed", **{"from": 7, "gap": True, "open_calls": []})
    [error] = run.inbox
    assert isinstance(error, AxonError)
    assert "messages 1 to 6" in error.message
    assert (b"cancel", {}) in sent(core)


def test_a_new_broker_makes_it_resume_what_is_open():
    core = ClientCore()
    started(core)
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    assert sent(core) == []
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert sent(core) == [(b"resume", {"from": 1})]


NEVER_RAN = {"error_type": "unknown_request", "message": "", "details": {"may_have_run": False}}


def test_what_never_ran_is_sent_again_with_the_time_that_is_left_and_with_what_was_said_to_it():
    core = ClientCore()
    run = started(core, timeout_ms=60_000)
    core.steer(b"1", "more", "asap")
    core.outgoing.clear()
    assert message(core, b"error", 20.0, **NEVER_RAN) is None
    assert [frames[0] for frames in core.outgoing] == [b"run_stream", b"steer"]
    assert sent(core)[0] == (b"run_stream", {"timeout_ms": 40_000})
    chunk(core, 1)
    message(core, b"error", 21.0, **NEVER_RAN)
    assert sent(core) == []
    assert run.ended


def test_each_part_of_what_never_ran_is_answered_and_it_is_sent_again_once():
    core = ClientCore()
    run = started(core)
    core.steer(b"1", "more", "asap")
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    core.outgoing.clear()
    for _ in ("to the resume", "to the steer"):
        message(core, b"error", 2.0, **NEVER_RAN)
        core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert [kind for kind, _ in sent(core)] == [b"run_stream", b"steer"]
    core.receive([b"alive", b"", pack({"boot": "three", "open": 1})], 5.0)
    message(core, b"error", 5.0, **NEVER_RAN)
    assert [kind for kind, _ in sent(core)] == [b"resume", b"run_stream", b"steer"]
    assert not run.ended


def test_a_resume_that_would_come_too_soon_is_put_off():
    core = ClientCore()
    started(core)
    for boot, now in (("one", 0.0), ("two", 1.0), ("three", 2.0)):
        core.receive([b"alive", b"", pack({"boot": boot, "open": 1})], now)
    assert [kind for kind, _ in sent(core)] == [b"resume"]
    core.tick(3.0)
    assert sent(core) == [(b"resume", {"from": 1})]
    core.tick(4.0)
    assert sent(core) == []


def test_a_cancelled_run_that_never_ran_is_not_sent_again():
    core = ClientCore()
    run = started(core)
    core.cancel(b"1")
    core.outgoing.clear()
    assert message(core, b"error", **NEVER_RAN) is run
    assert sent(core) == []
    assert run.inbox[-1].error_type == "cancelled"


def test_a_cancel_may_have_been_lost_too():
    core = ClientCore()
    started(core)
    core.cancel(b"1")
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    core.outgoing.clear()
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert sent(core) == [(b"resume", {"from": 1}), (b"cancel", {})]


@pytest.mark.parametrize("of", ["resume", "tool_result"])
def test_what_a_broker_that_just_started_had_no_room_for_is_asked_for_again(of):
    core = ClientCore()
    started(core)
    assert message(core, b"refused", of=of, error_type="overloaded", message="", call_id="c") is None
    core.tick(1.0)
    assert sent(core) == [(b"resume", {"from": 1})]
    core.tick(1.5)
    assert sent(core) == []


def test_two_counts_of_open_requests_that_differ_make_it_resume():
    core = ClientCore()
    started(core)
    for now in (0.0, 2.0):
        core.receive([b"alive", b"", pack({"boot": "one", "open": 2})], now)
    assert sent(core) == [(b"resume", {"from": 1})]


def test_silence_makes_it_ask_and_an_answer_after_silence_makes_it_resume():
    core = ClientCore()
    started(core)
    chunk(core, 1)
    core.tick(SILENCE_TIMEOUT_S + 0.1)
    [(kind, header)] = sent(core)
    assert kind == b"ping"
    assert "instance" in header
    core.receive([b"pong", core._probe_id, pack({"boot": "one", "limits": {"max_body": 5}})], 6.0)
    assert sent(core) == [(b"resume", {"from": 2})]
    with pytest.raises(AxonError, match="at most 5"):
        core.run("run", "echo", "far too long", {}, 6.0)


def test_a_reconnect_makes_it_resume():
    core = ClientCore()
    core.connected(0.0)
    started(core)
    core.connected(1.0)
    assert [kind for kind, _ in sent(core)] == [b"resume", b"ping"]


def test_nothing_is_waited_for_for_ever():
    core = ClientCore()
    run = started(core, timeout_ms=1000)
    core.tick(1.0 + ANSWER_GRACE_S)
    assert not run.ended
    core.tick(1.1 + ANSWER_GRACE_S)
    assert run.ended
    assert run.inbox[-1].details["by"] == "client"


def test_stale_frames_in_front_unknown_kinds_and_foreign_ids_do_no_harm():
    core = ClientCore()
    run = started(core)
    packed = pack({"seq": 1, "type": "text", "data": "x", "step": 1, "part": 0})
    assert core.receive([b"stale", b"frame", b"chunk", b"1", packed], 0.0) is run
    assert core.receive([b"chunk", b"another", packed], 0.0) is None
    assert core.receive([b"of_the_future", b"1", pack({"a": 1})], 0.0) is None
    assert core.receive([b"x"], 0.0) is None


def test_options_are_checked_before_anything_is_sent():
    core = ClientCore()
    with pytest.raises(TypeError, match="unknown option 'promt'; known options: id, timeout_ms"):
        core.run("run", "echo", "x", {"promt": 1}, 0.0)
    with pytest.raises(TypeError, match="unknown option 'timeout'; did you mean 'timeout_ms'"):
        core.run("run", "echo", "x", {"timeout": 1}, 0.0)
    with pytest.raises(TypeError, match="unknown option 'dep'; did you mean 'deps'"):
        core.call_tool("add", {}, {"dep": 1}, 0.0)
    assert not core.outgoing
    core.run("run", "echo", "x", {"id": "same"}, 0.0)
    with pytest.raises(AxonError, match="already has an open request"):
        core.run("run", "echo", "x", {"id": "same"}, 0.0)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        (b"chunk", b"\xc1"),
        (b"chunk", pack({"seq": 1})),
        (b"chunk", pack({"seq": "1", "type": "text"})),
        (b"complete", pack([])),
        (b"resumed", pack({"gap": True})),
    ],
)
def test_an_answer_that_cannot_be_read_ends_its_run_and_cancels_it(kind, packed):
    core = ClientCore()
    run = started(core)
    assert core.receive([kind, b"1", packed], 0.0) is run
    assert run.ended
    [error] = run.inbox
    assert (error.error_type, error.details) == ("internal", {"by": "client"})
    assert error.message.startswith(f"malformed `{kind.decode()}` message from the daemon: ")
    assert sent(core) == [(b"cancel", {})]
    assert not core.open


def test_an_alive_or_pong_that_cannot_be_read_does_no_harm():
    core = ClientCore()
    run = started(core)
    core.connected(0.0)
    core.outgoing.clear()
    bound = core.max_body
    assert core.receive([b"alive", b"", b"\xc1"], 0.0) is None
    core.receive([b"pong", core._probe_id, b"\xc1"], 0.0)
    for body in ({"limits": None}, {"limits": {"max_body": "x"}, "boot": 7}, {"limits": [], "boot": None}):
        core.connected(0.0)
        core.receive([b"pong", core._probe_id, pack(body)], 0.0)
    assert core.max_body == bound
    assert not run.ended
    assert chunk(core, 1) is run


def test_an_abandoned_request_is_cancelled_and_ended():
    core = ClientCore()
    run = started(core)
    chunk(core, 1)
    core.abandon(run)
    [error] = run.inbox
    assert (error.error_type, error.details) == ("cancelled", {"by": "client"})
    assert run.ended
    assert sent(core) == [(b"cancel", {})]
    again = started(core)
    core.abandon(run)  # long ended: its id is another run's now
    assert sent(core) == []
    assert core.open == {b"1": again}


@pytest.mark.parametrize("id", ["", b"", "x" * (limits.MAX_ID + 1), "\u00e9" * (limits.MAX_ID // 2 + 1)])
def test_an_id_that_the_daemon_would_refuse_is_refused_here(id):
    core = ClientCore()
    with pytest.raises(AxonError, match="expected 1 to 64") as caught:
        core.run("run", "echo", "x", {"id": id}, 0.0)
    assert caught.value.error_type == "invalid_request"
    assert not core.outgoing


def test_a_request_may_have_the_id_probe():
    core = ClientCore()
    core.connected(0.0)
    run = core.run("run", "echo", "x", {"id": "probe"}, 0.0)
    core.connected(1.0)
    assert core.open[b"probe"] is run
    assert len(core._probe_id) <= limits.MAX_ID
    assert core._probe_id != ClientCore()._probe_id


def test_an_idle_spell_is_no_silence():
    core = ClientCore()
    core.connected(0.0)
    core.receive([b"pong", core._probe_id, pack({"boot": "one"})], 0.0)
    started(core, 100.0)
    core.tick(100.5)
    assert sent(core) == []
    core.tick(100.1 + SILENCE_TIMEOUT_S)
    assert [kind for kind, _ in sent(core)] == [b"ping"]


# --- its two faces ---------------------------------------------------------------------------------

NOBODY = "tcp://127.0.0.1:1"


@pytest.mark.parametrize("face", [AsyncClient, Client])
def test_a_wrong_endpoint_or_identity_is_told_at_once(face):
    with pytest.raises(ValueError, match=r"write tcp://127\.0\.0\.1:5570 or ipc://path"):
        face("nonsense")
    with pytest.raises(ValueError, match="no endpoint with a port: write tcp://127"):
        face("tcp://127.0.0.1")
    for identity in ("\u00e9", "", "x" * 201):
        with pytest.raises(ValueError, match="expected 1 to 200 ASCII characters"):
            face(NOBODY, identity=identity)


def test_entering_that_fails_leaves_nothing_behind():
    async def enter() -> None:
        files = Path("/proc/self/fd")
        before = len(list(files.iterdir()))
        with pytest.raises(zmq.ZMQError):
            await AsyncClient("tcp://*:1").__aenter__()
        assert len(list(files.iterdir())) == before

    asyncio.run(enter())
    before = threading.active_count()
    with pytest.raises(zmq.ZMQError):
        Client("tcp://*:1").__enter__()
    assert threading.active_count() == before


def test_a_closed_stream_ends_whoever_reads_it():
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


def test_a_closed_stream_ends_the_thread_that_reads_it():
    outcome: list[AxonError] = []
    with Client(NOBODY) as client:
        stream = client.stream("echo", "x")

        def read() -> None:
            try:
                next(stream, None)
            except AxonError as error:
                outcome.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: client._client._news, "the thread that waits")
        stream.close()
        thread.join(10)
        assert [error.error_type for error in outcome] == ["cancelled"]
    stream.close()


def test_the_async_client_is_used_inside_with_only():
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
            assert not client._core.outgoing
            assert not client._core.open
            async with client:
                with pytest.raises(RuntimeError, match="already connected"):
                    await client.__aenter__()

    asyncio.run(talk())


def test_the_blocking_client_is_used_inside_with_only():
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


def test_a_task_that_is_cancelled_cancels_its_run(daemon: Daemon):
    async def talk() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.run({"model": "synthetic:tokens=500"}, "x", id="given-up"), 0.3)
            await client.run("echo", "x")

    asyncio.run(talk())
    wait_until(lambda: _cancelled(daemon, "run-2", "given-up"), "the end of the run")


def _cancelled(daemon: Daemon, worker: str, id: str) -> bool:
    return any(f"id={id}" in line and "cancelled" in line for line in daemon.log(worker).splitlines())


def test_cancelling_from_outside_raises_what_there_was(client: Client):
    stream = client.stream({"model": "synthetic:tokens=500"}, "x")
    first = next(stream)
    stream.cancel()
    with pytest.raises(AxonError) as caught:
        stream.complete()
    assert caught.value.details["partial"]["text"].startswith(first.data)
    assert list(stream) == []


def test_the_blocking_client_is_usable_from_several_threads(client: Client):
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        answers[n] = client.run("echo", f"thread {n}").result

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {n: f"thread {n}" for n in range(8)}


def test_closing_ends_whoever_still_waits(daemon: Daemon):
    outcome: list[AxonError] = []
    pieces: list[Chunk] = []
    with Client(daemon.endpoint) as client:
        stream = client.stream({"model": "synthetic:tokens=5000"}, "x")

        def read() -> None:
            try:
                for event in stream:
                    pieces.append(event)
            except AxonError as error:
                outcome.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: len(pieces) >= 3, "chunks in the other thread")
    thread.join(10)
    assert not thread.is_alive()
    assert outcome
    assert outcome[0].error_type == "cancelled"


def test_events_are_typed(client: Client):
    accepted, chunk, complete = client.stream("echo", "hi", ack=True)
    assert accepted.duplicate is False
    assert chunk == Chunk(1, "text", "hi", 1, 0)
    assert isinstance(complete, Complete)
    assert (complete.seq, complete.result, complete.model) == (2, "hi", "echo")


def test_nobody_there_is_said_after_the_given_time():
    with Client(NOBODY) as client, pytest.raises(AxonError) as caught:
        client.ping(0.2)
    assert caught.value.error_type == "unreachable"
    assert caught.value.retryable
