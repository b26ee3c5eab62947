"""Broker, workers and clients under random histories of losses, restarts and time, checked against the protocol."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from axon_zmq.broker.core.broker import CLIENT_GRACE_S, RECOVERY_S
from axon_zmq.broker.core.quarantine import STRIKES
from axon_zmq.broker.core.states import RunState
from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk, Complete, ToolCall
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.testing.simulation import CHUNK, DRAIN_S, STUBBORN, TOOL, Client, Worker, World
from axon_zmq.worker.core.concurrency import Slot
from axon_zmq.worker.core.events import Leave
from axon_zmq.worker.core.worker import STUCK_GRACE_S, Phase

SCRIPTS = ["cccc", "ctc", "cctct", "tc", "c", "", "cscc", "ttt", "tst"]
"""The behaviour of a run: chunks, tool calls, or not ending on request."""


EXPECTED = {"cancelled", "deadline_exceeded", "overloaded", "no_worker", "shutting_down", "slow_consumer"}
"""Ends of runs that are no error of the client or the agent."""
FAULTS = [
    *("worker_dies", "worker_dies", "worker_comes", "worker_comes", "worker_hangs_or_goes_on", "worker_leaves"),
    *("broker_is_restarted", "broker_goes", "broker_and_worker_die", "cable", "client_comes"),
    *("client_is_blocked", "stuck_code_returns"),
]


def script_of(body: bytes) -> Iterator[str]:
    return (
        {"t": TOOL, "s": STUBBORN}.get(step, CHUNK) for step in unpack(body, "the body")["prompt"].partition("/")[2]
    )


class WorldMachine(RuleBasedStateMachine):
    """Each rule is a possible event; the invariants are promises to clients."""

    @initialize(workers=st.integers(1, 3))
    def begin(self, workers: int) -> None:
        bounds = {"max_queued": 8, "max_queued_per_client": 6, "max_waiting_per_client": 2, "max_keep_ms": 8_000}
        # A worker may have one large body, and a client two.
        bounds |= {"max_in_flight_bytes": 100_000, "max_in_flight_bytes_per_client": 150_000}
        self.world = World(script_of, **bounds, max_queued_bytes=500_000, hang_seconds=5)
        self.names = 0
        self.attempts: dict[RunKey, int] = {}
        self.somebody_died = False
        self.former: list[Client] = []
        """Client processes that were killed."""
        for number in range(workers):
            self.world.add_worker(f"run_stream-w{number}", "run_stream", 2)
        self.world.add_client(b"a")
        self.world.add_client(b"b")
        self.world.pass_time(RECOVERY_S + 1)

    # --- events -------- ---------------------------------------------------------------------------

    @rule(
        who=st.sampled_from([b"a", b"b"]),
        scripts=st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=3),
        attempts=st.sampled_from([1, 3, 2]),
        keep=st.booleans(),
        timeout_ms=st.sampled_from([20_000, 40_000, 2_000]),
        size=st.sampled_from([0, 0, 70_000]),
    )
    def request(self, who: bytes, scripts: list[str], attempts: int, keep: bool, timeout_ms: int, size: int) -> None:
        client = self.world.clients[who]
        for script in scripts:
            self.names += 1
            id = b"%d" % self.names
            options = {"id": id, "max_attempts": attempts, "timeout_ms": timeout_ms}
            options["on_disconnect"] = "keep" if keep else "cancel"
            prompt = f"{self.names}{' ' * size}/{script}"
            request = client.core.run("run_stream", "agent", prompt, options, self.world.now)
            client.requests[id], client.events[id] = request, []
            self.attempts[who, id] = attempts
        client.read()

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        client, id = data.draw(st.sampled_from(self._open()))
        client.core.cancel(id)
        client.read()

    @precondition(lambda self: any(client.to_answer for client in self._clients()))
    @rule()
    def answer(self) -> None:
        self._answer_all()

    @precondition(lambda self: self.world.pipes())
    @rule(data=st.data(), most=st.integers(1, 8))
    def deliver(self, data: st.DataObject, most: int) -> None:
        for _ in range(most):
            if ready := self.world.pipes():
                data.draw(st.sampled_from(ready))()

    @precondition(lambda self: self._running())
    @rule(data=st.data(), most=st.integers(1, 4))
    def step(self, data: st.DataObject, most: int) -> None:
        for _ in range(most):
            if running := self._running():
                worker, key = data.draw(st.sampled_from(running))
                worker.step(key)

    @precondition(lambda self: self.world.pipes() or self._running())
    @rule(most=st.integers(1, 3))
    def goes_well(self, most: int) -> None:
        """Deliver all messages, continue the runs and answer the calls."""
        for _ in range(most):
            self.world.deliver_all()
            self._answer_all()
            for worker, key in self._running():
                worker.step(key)

    @precondition(lambda self: self.world.pipes())
    @rule()
    def everything_arrives(self) -> None:
        self.world.deliver_all()

    @rule(data=st.data(), fault=st.sampled_from(FAULTS))
    def fault(self, data: st.DataObject, fault: str) -> None:
        getattr(self, f"_{fault}")(data)

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.5, 6.0, CLIENT_GRACE_S + 3]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # --- faults ---------- -------------------------------------------------------------------------

    def _client_is_blocked(self, data: st.DataObject) -> None:
        self.world.block(data.draw(st.sampled_from(self._clients())))

    def _worker_comes(self, data: st.DataObject) -> None:
        if len(self.world.workers) < 4:
            self.names += 1
            self.world.add_worker(f"run_stream-{self.names}", "run_stream", data.draw(st.integers(1, 3)))

    def _worker_dies(self, data: st.DataObject) -> None:
        if alive := self._alive():
            worker = data.draw(st.sampled_from(alive))
            self.somebody_died = True
            self.world.kill_worker(worker, data.draw(st.integers(0, len(worker.sent))))
            if self.world.broker is not None and data.draw(st.booleans()):
                self.world.notice(worker, data.draw(st.integers(0, len(worker.sent))))

    def _worker_hangs_or_goes_on(self, data: st.DataObject) -> None:
        if alive := self._alive():
            worker = data.draw(st.sampled_from(alive))
            if worker.is_hung:
                self.world.wake_worker(worker)
            else:
                worker.is_hung = self.somebody_died = True  # it is killed unless it continues soon

    def _stuck_code_returns(self, data: st.DataObject) -> None:
        if alive := [worker for worker in self._alive() if not worker.is_hung]:
            data.draw(st.sampled_from(alive)).release_stuck()

    def _worker_leaves(self, data: st.DataObject) -> None:
        if alive := [worker for worker in self._alive() if not worker.is_leaving and not worker.is_hung]:
            worker = data.draw(st.sampled_from(alive))
            worker.put(Leave())

    def _broker_goes(self, data: st.DataObject) -> None:
        if self.world.broker is None:
            return
        if data.draw(st.booleans()):
            self.world.kill_broker(lambda count: data.draw(st.integers(0, count)))
        else:
            self.world.stop_broker()

    def _broker_and_worker_die(self, data: st.DataObject) -> None:
        self._worker_dies(data)
        self._broker_is_restarted(data)

    def _broker_is_restarted(self, data: st.DataObject) -> None:
        self._broker_goes(data)
        self.world.start_broker()

    def _cable(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self._clients()))
        if client.is_connected:
            self.world.cut(client, lambda count: data.draw(st.integers(0, count)))
        else:
            self.world.restore(client)

    def _client_comes(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self._clients()))
        self.former.append(client)
        self.world.add_client(client.identity)

    # --- promises ------- --------------------------------------------------------------------------

    @invariant()
    def rule_1_what_a_client_takes_is_whole_and_in_order(self) -> None:
        for client, id, events in self._told():
            numbers = [event.seq for event in events if isinstance(event, Chunk | ToolCall)]
            assert numbers == list(range(1, len(numbers) + 1)), (client.identity, id, events)

    @invariant()
    def rule_2_a_request_has_one_end_and_nothing_after_it(self) -> None:
        for client, id, events in self._told():
            assert len(client.ends(id)) <= 1
            assert not client.ends(id) or isinstance(events[-1], Complete | AxonError)

    @invariant()
    def rule_2_what_a_client_hears_of_a_run_comes_from_one_start_of_it(self) -> None:
        for client, id, events in self._told():
            sources = {event.data.partition(":")[0] for event in events if isinstance(event, Chunk)}
            assert len(sources) <= 1, (client.identity, id, sources)

    @invariant()
    def nothing_is_lost_while_no_worker_dies(self) -> None:
        if not self.somebody_died:
            for client, id, _ in self._told():
                for end in client.ends(id):
                    assert not isinstance(end, AxonError) or end.error_type in EXPECTED, (client.identity, id, end)

    @invariant()
    def rule_4_no_run_is_started_more_often_than_it_may_be(self) -> None:
        started = Counter(key for worker in self.world.starts for key, _ in worker.started)
        for key, times in started.items():
            assert times <= min(self.attempts[key], STRIKES + self._leaving_lost()), key

    @invariant()
    def rule_7_no_tool_call_is_run_twice_by_one_process(self) -> None:
        for client in (*self._clients(), *self.former):
            assert all(times == 1 for times in client.called.values()), client.called

    @invariant()
    def a_worker_is_given_no_more_runs_than_its_code_leaves_room_for(self) -> None:
        for worker in self.world.starts:
            assert not worker.was_overfull, worker

    @invariant()
    def no_slot_is_free_while_a_run_waits_for_one(self) -> None:
        for worker in self._alive():
            slots = Counter(worker.core.slot_of(run) for run in worker.core)
            assert slots[Slot.HELD] == worker.core.held_slots
            assert not slots[Slot.WANTED] or worker.core.held_slots >= max(1, worker.core.slots), worker

    @invariant()
    def a_worker_ends_each_run_that_it_started_once(self) -> None:
        for worker in self.world.starts:
            started = Counter(key for key, _ in worker.started)
            assert all(times <= started[key] for key, times in worker.terminals.items()), worker

    @invariant()
    def the_broker_and_its_workers_agree_on_who_holds_what_once_all_is_delivered(self) -> None:
        broker = self.world.broker
        if broker is None or broker.recovering or self.world.pipes():
            return
        for worker in self._alive():
            known = broker.workers.get(worker.routing_id)
            if known is not None and not worker.is_hung and worker.boot == broker.boot:
                assert set(known.runs) == set(worker.runs)
                waiting = {run.key for run in worker.core if worker.core.slot_of(run) is Slot.LEFT}
                assert {key for key, run in known.runs.items() if run.state is RunState.WAITING} == waiting
                # A run that waited when it was asked to end holds no slot until it ends.
                assert known.waiting == sum(run.waits for run in known.runs.values()) >= len(waiting)
                assert known.busy == len(worker.runs) - min(known.waiting, known.max_waiting)
                # More runs than slots have been dispatched only if runs continue that others had replaced; such a run
                # may have been asked to end meanwhile.
                wanting = [run for run in worker.core if worker.core.slot_of(run) in (Slot.WANTED, Slot.NONE)]
                assert known.busy <= max(1, known.slots) + len(wanting) or not known.slots

    @invariant()
    def the_counters_of_the_broker_agree_with_its_runs(self) -> None:
        if (broker := self.world.broker) is None:
            return
        runs = [run for run in broker.runs if run.state is not RunState.ENDED]
        for pool in broker.workers.all_pools():
            queued = [run for run in runs if run.state is RunState.QUEUED and broker.workers.pool_of(run) is pool]
            assert (pool.waiting, pool.waiting_bytes) == (len(queued), sum(run.size for run in queued))
        shares = broker.workers.pools["run_stream"].shares
        for client in (b"a", b"b"):
            queued_bytes = sum(run.size for run in runs if run.client == client and run.state is RunState.QUEUED)
            assert broker.workers.waiting_bytes_of(client) == queued_bytes
            assert broker.runs.in_flight.of_client(client) == sum(run.in_flight for run in runs if run.client == client)
            at_workers = [run for worker in broker.workers for run in worker.runs.values() if run.client == client]
            waiting = sum(run.waits for run in at_workers)
            assert shares.waiting(client) == waiting
            assert shares.held(client) == len(at_workers) - min(waiting, 2)
        for worker in broker.workers:
            assert worker.holding == len(worker.runs)
            assert worker.suspects == sum(run.suspect for run in worker.runs.values())
            in_flight = sum(run.in_flight for run in worker.runs.values())
            assert broker.runs.in_flight.of_worker(worker.routing_id) <= in_flight

    def teardown(self) -> None:
        """Whatever happened before: after all processes have returned and time has passed, every run has ended."""
        if not hasattr(self, "world"):
            return
        world = self.world
        self._heal()
        for _ in range(60):
            world.pass_time(1.0)
            world.deliver_all()
            for worker, key in self._running():
                worker.step(key)
            self._answer_all()
            world.deliver_all()
        for client in self._clients():
            for id in client.requests:
                assert client.ends(id), (client.identity, id, client.events[id])
        world.pass_time(limits.RESUME_WINDOW + CLIENT_GRACE_S + 10)
        assert world.broker is not None
        assert len(world.broker.runs) == 0, list(world.broker.runs)
        assert all(worker.busy == worker.waiting == worker.suspects == 0 for worker in world.broker.workers)
        for pool in world.broker.workers.all_pools():
            assert (len(pool.shares), len(pool.resumes), pool.waiting, pool.waiting_bytes) == (0, 0, 0, 0)
        assert not len(world.broker.runs.in_flight)
        assert not any(worker.core.kept_runs for worker in world.workers.values())
        assert world.broker.clients.gone() == []
        assert not world.broker.relay.relayed_runs
        assert not world.broker.relay.disowned_runs
        self.rule_1_what_a_client_takes_is_whole_and_in_order()
        self.rule_2_a_request_has_one_end_and_nothing_after_it()

    def _heal(self) -> None:
        for worker in self._alive():
            if worker.is_hung:
                self.world.wake_worker(worker)
        if self.world.broker is None:
            self.world.start_broker()
        for client in self._clients():
            if not client.is_connected:
                self.world.restore(client)
        self.world.add_worker("run_stream-999", "run_stream", 3)

    def _answer_all(self) -> None:
        for client in self._clients():
            while client.to_answer:
                client.core.answer(*client.to_answer.pop(0), {"result": 1})
            client.read()

    # --- small things ------------------------------------------------------------------------------

    def _clients(self) -> list[Client]:
        return list(self.world.clients.values())

    def _open(self) -> list[tuple[Client, bytes]]:
        return [(client, id) for client in self._clients() for id in client.core.open if id in client.requests]

    def _told(self) -> Iterator[tuple[Client, bytes, list]]:
        for client in (*self._clients(), *self.former):
            for id, events in client.events.items():
                yield client, id, events

    def _alive(self) -> list[Worker]:
        return [worker for worker in self.world.workers.values() if not worker.is_dead]

    def _running(self) -> list[tuple[Worker, RunKey]]:
        return [(worker, key) for worker in self._alive() if not worker.is_hung for key in worker.runs]

    def _leaving_lost(self) -> int:
        """Workers that died while leaving, which does not make their runs suspect."""
        return sum(worker.is_leaving for worker in self.world.starts)


TestWorld = WorldMachine.TestCase
TestWorld.settings = settings(
    max_examples=settings.default.max_examples * 3 // 2,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
if (
    os.environ.get("AXON_SIMULATION") == "quick"
):  # for seeded_faults.py: the same histories each time, without shrinking
    TestWorld.settings = settings(
        TestWorld.settings,
        database=None,
        derandomize=True,
        max_examples=40,
        phases=[Phases.generate],
        report_multiple_bugs=False,
    )


# --- named histories: regressions and special cases ----- -------------------------------------------


def plain(workers: int = 1, script: str = "ccc") -> tuple[World, Client, bytes]:
    """A world with a client and one run under way."""
    world = World(lambda _: (CHUNK for _ in script))
    for number in range(workers):
        world.add_worker(f"run_stream-{number}", "run_stream", 2)
    world.pass_time(RECOVERY_S + 1)
    client = world.add_client(b"a")
    send(world, client, b"1")
    return world, client, b"1"


def send(
    world: World,
    client: Client,
    id: bytes,
    max_attempts: int = 1,
    timeout_ms: int = 600_000,
    prompt: str = "x",
    on_disconnect: Literal["cancel", "keep"] = "cancel",
) -> None:
    client.requests[id] = client.core.run(
        "run_stream",
        "agent",
        prompt,
        {"id": id, "max_attempts": max_attempts, "timeout_ms": timeout_ms, "on_disconnect": on_disconnect},
        world.now,
    )
    client.events[id] = []
    client.read()


def finish(world: World) -> None:
    for _ in range(10):
        world.deliver_all()
        for worker in world.workers.values():
            for key in [] if worker.is_dead or worker.is_hung else worker.runs:
                worker.step(key)
        for client in world.clients.values():
            while client.to_answer:
                client.core.answer(*client.to_answer.pop(0), {"result": 1})
            client.read()
        world.pass_time(1.0)


def test_a_request_that_never_reached_the_broker_is_sent_again_and_runs_once():
    world, client, id = plain()
    world.kill_broker(lambda _: 0)  # unread
    world.start_broker()
    finish(world)
    [end] = client.ends(id)
    assert isinstance(end, Complete)
    assert len([worker.started for worker in world.starts if worker.started]) == 1


def test_a_request_dispatched_to_a_worker_that_never_received_it_is_sent_again():
    world, client, id = plain()
    world.deliver_from(client)  # it reaches the broker, which dispatches it
    world.kill_broker(lambda _: 0)
    world.start_broker()
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)


def test_a_run_whose_worker_died_with_the_broker_is_not_sent_again():
    world, client, id = plain()
    world.deliver_all()
    [worker] = world.workers.values()
    assert worker.runs
    world.kill_broker(lambda _: 0)
    world.kill_worker(worker, 0)
    del world.workers[worker.routing_id]
    world.start_broker()
    world.add_worker("run_stream-9", "run_stream", 2)
    finish(world)
    [end] = client.ends(id)
    assert (end.error_type, end.details["may_have_run"]) == ("unknown_request", True)
    assert sum(len(each.started) for each in world.starts) == 1


@pytest.mark.parametrize("survives", [0, 1, 2])
def test_a_stream_is_complete_although_its_broker_died(survives: int):
    world, client, id = plain(script="cccccc")
    world.deliver_all()
    [worker] = world.workers.values()
    for _ in range(3):
        worker.step((b"a", id))
    world.kill_broker(lambda count: min(count, survives))
    worker.step((b"a", id))
    world.start_broker()
    finish(world)
    assert [event.seq for event in client.events[id]] == list(range(1, 8))


def test_a_worker_that_registers_and_leaves_during_recovery_does_not_count_as_lost():
    world, client, id = plain()
    world.kill_broker(lambda _: 0)  # the request was not read
    world.start_broker()
    world.deliver_all()
    [worker] = world.workers.values()
    worker.put(Leave())
    world.pass_time(RECOVERY_S + 0.5)
    world.add_worker("run_stream-9", "run_stream", 2)
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)


@pytest.mark.parametrize("takes_own_file", [False, True])
def test_ended_runs_of_a_worker_that_left_without_a_broker_can_be_resumed(takes_own_file: bool):
    world, client, id = plain(workers=2)
    world.deliver_all()
    [leaving] = [worker for worker in world.workers.values() if worker.runs]
    [other] = [worker for worker in world.workers.values() if worker is not leaving]
    play(leaving)
    world.cut(client, lambda _: 0)
    world.kill_broker(lambda _: 0)  # the client has received nothing
    leaving.put(Leave())
    world.pass_time(1.25)
    assert (leaving.core.phase, len(world.files)) == (Phase.WAITING, 1)
    world.start_broker()
    first, second = (leaving, other) if takes_own_file else (other, leaving)
    world.deliver_from(first)  # so it registers first and is told to take the file
    world.deliver_from(second)
    world.deliver_all()
    world.pass_time(3.0)
    assert leaving.is_dead
    world.restore(client)
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)


# --- histories of which each shows a rule of the relay; see seeded_faults.py ------------------------


def test_late_messages_of_a_lost_worker_are_dropped():
    world, client, id, worker = running(max_attempts=3)
    worker.step((b"a", id))
    world.kill_worker(worker, 1)
    world.notice(worker, unread=1)
    finish(world)
    assert_streamed_by_one(client, id, world.starts[1])


def superseded() -> tuple[World, Client, Worker, Worker]:
    """A client sends its request to a second broker, which does not know that a hung worker has it, and which has
    given it to another worker when the first goes on and registers."""
    world, _, _, hung = running()
    hung.is_hung = True
    world.kill_broker(lambda _: 0)
    world.start_broker()
    world.pass_time(RECOVERY_S + 1)
    client = world.add_client(b"a")
    send(world, client, b"1")
    world.deliver_all()
    [other] = [worker for worker in world.workers.values() if worker is not hung]
    assert other.runs
    world.wake_worker(hung)
    return world, client, hung, other


def test_messages_about_a_disowned_run_are_dropped():
    world, client, hung, other = superseded()
    hung.step((b"a", b"1"))
    world.deliver_from(hung)
    finish(world)
    assert_streamed_by_one(client, b"1", other)


def test_the_terminal_message_of_a_disowned_run_is_dropped():
    world, client, hung, other = superseded()
    world.deliver_all()
    assert hung.terminals[b"a", b"1"] == 1
    finish(world)
    assert_streamed_by_one(client, b"1", other)


def test_a_worker_may_take_a_run_with_the_id_of_one_that_it_disowned():
    world, client, hung, other = superseded()
    finish(world)
    assert isinstance(client.ends(b"1")[0], Complete)
    world.kill_worker(other, 0)
    world.pass_time(limits.RESUME_WINDOW + 1)
    send(world, client, b"1")
    finish(world)
    assert_streamed_by_one(client, b"1", hung)


def test_a_relayed_run_is_not_started_again():
    world, client, id, worker = running(max_attempts=3)
    worker.step((b"a", id))
    world.deliver_all()
    world.kill_worker(worker, 0)
    finish(world)
    assert error_type(client, id) == "worker_lost"
    assert len(started(world)) == 1


def test_a_refusal_after_the_end_of_a_run_is_not_counted_for_the_next_run_with_its_id():
    world, client, id, worker = running()
    client.core.cancel(id)
    client.read()
    play(worker)
    world.deliver_from(client)  # the cancellation reaches the worker after the end, which is still under way
    world.deliver_to(worker)
    assert kinds.REFUSED in [kind for _, kind, *_ in worker.sent]
    world.deliver_all()
    assert isinstance(client.ends(id)[0], Complete)
    assert world.broker is not None
    assert not world.broker.relay.relayed_runs
    assert_started_again_after_the_resume_window(world, client, id)


def test_an_id_of_a_run_ended_by_the_broker_can_be_reused():
    world, client, id, worker = running()
    worker.step((b"a", id))
    world.deliver_all()
    world.kill_worker(worker, 0)
    world.pass_time(1.0)
    assert error_type(client, id) == "worker_lost"
    assert_started_again_after_the_resume_window(world, client, id)


def test_an_id_of_an_ended_run_can_be_reused():
    world, client, id, _ = running()
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)
    assert world.broker is not None
    assert not world.broker.relay.relayed_runs
    assert_started_again_after_the_resume_window(world, client, id)


def test_a_returned_client_gets_the_following_messages_and_is_not_counted_as_gone():
    world, client, id, worker = running()
    world.cut(client, lambda _: 0)
    worker.step((b"a", id))
    world.deliver_all()
    assert world.broker is not None
    assert world.broker.clients.gone() == [b"a"]
    world.restore(client)
    world.deliver_all()
    assert world.broker.clients.gone() == []
    finish(world)
    assert_streamed_by_one(client, id, worker)


# --- histories of which each shows a rule of the worker core ----------------------------------------


def test_a_run_that_ends_at_its_deadline_reports_the_deadline():
    world, client, id, _ = running(script="t", timeout_ms=2000)
    world.pass_time(2.5)
    world.deliver_all()
    [end] = client.ends(id)
    assert (end.error_type, end.message) == ("deadline_exceeded", "timeout_ms passed during the run")


def test_a_stuck_run_occupies_its_worker_before_its_terminal_message_is_sent():
    world, client, worker = stuck()
    send(world, client, b"2")
    world.deliver_all()
    client.core.cancel(b"1")
    client.read()
    world.deliver_all()
    world.pass_time(0.5)
    world.deliver_all()
    assert error_type(client, b"1") == "cancelled"
    assert worker.most_running == 1
    world.kill_broker(lambda _: 0)
    world.start_broker()
    world.pass_time(RECOVERY_S + 1)
    world.deliver_all()
    assert worker.most_running == 1  # as it reports to each broker at registration


def test_code_that_returns_late_frees_its_slot_and_ends_its_run_only_once():
    world, client, worker = stuck()
    client.core.cancel(b"1")
    client.read()
    world.deliver_all()
    world.pass_time(0.5)
    send(world, client, b"2")
    world.deliver_all()
    assert [key for key, _ in worker.started] == [(b"a", b"1")]
    worker.release_stuck()
    assert worker.terminals[b"a", b"1"] == 1
    finish(world)
    assert isinstance(client.ends(b"2")[0], Complete)
    assert not worker.is_leaving


def test_a_worker_leaves_if_its_code_stays_stuck():
    world, client, worker = stuck()
    client.core.cancel(b"1")
    client.read()
    world.deliver_all()
    world.pass_time(STUCK_GRACE_S - 1)
    assert not worker.is_leaving
    world.pass_time(2.0)
    assert worker.is_leaving


def test_a_replay_starts_at_the_seq_that_the_client_requests():
    world, client, id, worker = running(script="cccc")
    worker.step((b"a", id))
    worker.step((b"a", id))
    world.deliver_all()
    world.cut(client, lambda _: 0)
    worker.step((b"a", id))
    world.deliver_all()
    world.restore(client)
    world.deliver_from(client)
    world.deliver_to(worker)
    bodies = [(kind, unpack(body, "it").get("seq")) for _, kind, _, body in worker.sent]
    assert bodies == [(kinds.RESUMED, None), (kinds.CHUNK, 3)]
    finish(world)
    assert_streamed_by_one(client, id, worker)


def test_a_resuming_client_is_told_the_open_calls_and_answers_them_again():
    world, client, id, worker = running(script="tc")
    worker.step((b"a", id))
    world.deliver_all()
    _, call_id = client.to_answer.pop()
    client.core.answer(id, call_id, {"result": 1})
    client.read()
    world.cut(client, lambda _: 0)  # the answer is lost
    world.deliver_all()
    world.restore(client)
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)
    assert client.called == Counter({(id, call_id): 1})


def handed_over() -> tuple[World, Client, bytes, Worker]:
    """A client that missed the end of a run. The worker has left, and its successor was told to take its file."""
    world, client, id, leaving = running()
    [successor] = [worker for worker in world.workers.values() if worker is not leaving]
    world.cut(client, lambda _: 0)
    play(leaving)
    leaving.put(Leave())
    for _ in range(3):
        world.deliver_from(leaving)
        world.deliver_to(leaving)
    assert leaving.is_dead
    world.notice(leaving)
    world.deliver_to(successor)
    assert successor.reading
    world.restore(client)
    world.deliver_from(client)
    world.deliver_to(successor)
    return world, client, id, successor


def test_a_resume_received_while_a_handover_file_is_read_is_answered_after_it():
    world, client, id, successor = handed_over()
    assert not [kind for _, kind, *_ in successor.sent if kind == kinds.ERROR]
    successor.sent.clear()
    successor.read_file()
    assert [kind for _, kind, *_ in successor.sent][:3] == [kinds.HOLDS, kinds.RESUMED, kinds.CHUNK]
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)


def test_a_resume_of_a_run_whose_messages_are_lost_fails_with_an_error():
    world, client, id, _ = handed_over()
    world.files.clear()
    finish(world)
    assert error_type(client, id) == "unknown_request"


def test_a_leaving_worker_finishes_its_runs_before_it_hands_them_over():
    world, client, id, worker = running()
    worker.put(Leave())
    world.deliver_all()
    world.pass_time(2.0)
    assert not world.files
    finish(world)
    assert_streamed_by_one(client, id, worker)


def test_a_leaving_worker_accepts_runs_that_were_dispatched_before_the_broker_knew():
    world, client, id = plain(workers=1)
    world.deliver_from(client)  # the broker dispatches the run
    [worker] = world.workers.values()
    assert worker.inbox
    worker.put(Leave())
    world.deliver_to(worker)
    finish(world)
    assert_streamed_by_one(client, id, worker)


def test_a_leaving_worker_ends_its_runs_at_the_end_of_the_drain_time():
    world, client, id, worker = running(script="t")
    worker.step((b"a", id))
    worker.put(Leave())
    world.deliver_all()
    world.pass_time(DRAIN_S + 1)
    world.deliver_all()
    assert error_type(client, id) == "shutting_down"


def test_a_leaving_worker_reports_leaving_to_each_broker():
    world, client, id, worker = running(script="t")
    worker.step((b"a", id))
    worker.put(Leave())
    world.deliver_all()
    world.kill_broker(lambda _: 0)
    world.start_broker()
    world.deliver_all()
    world.pass_time(RECOVERY_S + 1)
    for number in range(3):
        send(world, client, b"new-%d" % number)
    world.deliver_all()
    assert [key for key, _ in worker.started] == [(b"a", id)]


# --- histories of which each shows a rule of runs that only wait for their client --------------------


def waiting(**bounds: int) -> tuple[World, Client, Worker]:
    """A worker with one slot, whose run only waits for a tool of its client, and another client."""
    world = World(script_of, **bounds)
    worker = world.add_worker("run_stream-0", "run_stream", 1)
    world.pass_time(RECOVERY_S + 1)
    client = world.add_client(b"a")
    world.add_client(b"b")
    send(world, client, b"1", prompt="1/tc", on_disconnect="keep")
    world.deliver_all()
    worker.step((b"a", b"1"))  # it calls the tool
    worker.step((b"a", b"1"))  # it only waits
    world.deliver_all()
    assert slot(worker, b"a", b"1") is Slot.LEFT
    return world, client, worker


def slot(worker: Worker, client: bytes, id: bytes) -> Slot:
    run = worker.core.get((client, id))
    assert run is not None
    return worker.core.slot_of(run)


def send_other(world: World, script: str = "c") -> Client:
    """Let the other client send a request."""
    other = world.clients[b"b"]
    send(world, other, b"2", prompt=f"2/{script}")
    return other


def reply(client: Client) -> None:
    """Let a client answer its open calls."""
    while client.to_answer:
        client.core.answer(*client.to_answer.pop(0), {"result": 1})
    client.read()


def test_a_run_that_only_waits_leaves_its_slot_to_another_run():
    world, client, worker = waiting()
    other = send_other(world)
    world.deliver_all()
    play_one(worker, b"b", b"2")
    world.deliver_all()
    assert isinstance(other.ends(b"2")[0], Complete)
    reply(client)
    finish(world)
    assert isinstance(client.ends(b"1")[0], Complete)
    assert worker.most_running == 1


def test_an_answered_run_continues_before_new_runs():
    world, client, worker = waiting()
    send_other(world)
    world.deliver_all()
    send(world, world.clients[b"b"], b"3", prompt="3/c")
    world.deliver_all()  # this one is queued in the broker
    reply(client)
    world.deliver_all()
    assert slot(worker, b"a", b"1") is Slot.WANTED
    play_one(worker, b"b", b"2")
    world.deliver_all()
    assert slot(worker, b"a", b"1") is Slot.HELD
    assert (b"b", b"3") not in worker.runs
    play_one(worker, b"a", b"1")
    world.deliver_all()
    assert worker.runs == [(b"b", b"3")]


def test_a_run_that_was_sent_while_another_continued_waits_in_the_worker_and_is_not_lost():
    world, client, worker = waiting()
    reply(client)
    world.deliver_from(client)
    world.deliver_to(worker)  # it continues at once, and the broker does not know yet
    other = send_other(world)
    world.deliver_from(other)
    world.deliver_to(worker)
    assert slot(worker, b"a", b"1") is Slot.HELD
    assert slot(worker, b"b", b"2") is Slot.WANTED
    world.deliver_all()
    play_one(worker, b"a", b"1")
    assert slot(worker, b"b", b"2") is Slot.HELD
    finish(world)
    assert isinstance(other.ends(b"2")[0], Complete)
    assert worker.most_running == 1


def test_an_answered_run_continues_before_a_new_run_that_has_arrived_earlier():
    world, client, worker = waiting()
    send(world, client, b"4", prompt="4/tc")
    world.deliver_all()
    worker.step((b"a", b"4"))
    worker.step((b"a", b"4"))
    world.deliver_all()
    first, second = client.to_answer
    client.core.answer(*first, {"result": 1})
    client.read()
    world.deliver_from(client)
    world.deliver_to(worker)  # run 1 continues, and the broker does not know yet
    other = send_other(world)
    world.deliver_from(other)
    world.deliver_to(worker)
    client.core.answer(*second, {"result": 1})
    client.read()
    world.deliver_from(client)
    world.deliver_to(worker)
    assert (slot(worker, b"b", b"2"), slot(worker, b"a", b"4")) == (Slot.WANTED, Slot.WANTED)
    play_one(worker, b"a", b"1")
    assert (slot(worker, b"b", b"2"), slot(worker, b"a", b"4")) == (Slot.WANTED, Slot.HELD)


def test_a_run_that_waits_for_its_first_slot_can_be_cancelled():
    world, client, worker = waiting()
    reply(client)
    world.deliver_from(client)
    world.deliver_to(worker)
    other = send_other(world)
    world.deliver_from(other)
    world.deliver_to(worker)
    other.core.cancel(b"2")
    other.read()
    world.deliver_all()
    assert error_type(other, b"2") == "cancelled"
    assert worker.core.held_slots == 1


def test_a_restarted_broker_learns_which_runs_wait():
    world, _, worker = waiting()
    world.kill_broker(lambda _: 0)
    world.start_broker()
    world.pass_time(RECOVERY_S + 1)
    other = send_other(world)
    world.deliver_all()
    play_one(worker, b"b", b"2")
    world.deliver_all()
    assert isinstance(other.ends(b"2")[0], Complete)


def test_a_run_answered_while_no_broker_was_there_continues_and_is_counted_by_the_next_one():
    world, client, worker = waiting()
    reply(client)
    world.deliver_from(client)
    world.kill_broker(lambda count: count)
    world.deliver_to(worker)
    worker.sent.clear()  # `continuing` is lost with the broker
    world.start_broker()
    world.pass_time(RECOVERY_S + 1)
    send_other(world)
    world.deliver_all()
    assert worker.runs == [(b"a", b"1")]
    finish(world)
    assert isinstance(client.ends(b"1")[0], Complete)


def test_an_answered_run_continues_although_stuck_code_occupies_every_slot():
    world, client, worker = waiting()
    other = send_other(world, "sc")
    world.deliver_all()
    worker.step((b"b", b"2"))  # it ignores all attempts to end it
    other.core.cancel(b"2")
    other.read()
    world.deliver_all()
    world.pass_time(0.5)
    assert error_type(other, b"2") == "cancelled"
    reply(client)
    world.deliver_all()
    assert slot(worker, b"a", b"1") is Slot.HELD


def test_the_slot_of_a_waiting_run_that_is_cancelled_is_freed_only_once():
    world, client, worker = waiting()
    client.core.cancel(b"1")
    client.read()
    world.deliver_all()
    assert error_type(client, b"1") == "cancelled"
    other = world.clients[b"b"]
    for id in (b"2", b"3"):
        send(world, other, id, prompt=f"{id.decode()}/c")
    world.deliver_all()
    assert worker.runs == [(b"b", b"2")]


def test_a_kept_run_that_only_waits_for_a_gone_client_ends_after_max_keep_ms():
    world, client, worker = waiting(max_keep_ms=60_000)
    world.cut(client, lambda _: 0)
    world.pass_time(58.0)
    assert worker.runs == [(b"a", b"1")]
    world.pass_time(6.0)
    assert not worker.runs
    world.restore(client)
    finish(world)
    assert error_type(client, b"1") == "cancelled"


def test_a_client_that_returns_stops_the_time_of_its_kept_runs():
    world, client, worker = waiting(max_keep_ms=60_000)
    for _ in range(3):
        world.cut(client, lambda _: 0)
        world.pass_time(50.0)
        world.restore(client)
        world.deliver_all()
    assert worker.runs == [(b"a", b"1")]
    reply(client)
    finish(world)
    assert isinstance(client.ends(b"1")[0], Complete)


def test_a_kept_run_that_makes_progress_is_not_ended_for_its_gone_client():
    world, client, worker = waiting(max_keep_ms=60_000)
    reply(client)
    world.deliver_all()
    world.cut(client, lambda _: 0)
    world.pass_time(200.0)
    assert worker.runs == [(b"a", b"1")]


# --- helpers -------------------- -------------------------------------------------------------------


def running(
    script: str = "ccc", max_attempts: int = 1, timeout_ms: int = 60_000
) -> tuple[World, Client, bytes, Worker]:
    """A client with one run, which one of two workers executes."""
    world = World(lambda _: ({"t": TOOL}.get(step, CHUNK) for step in script))
    for number in range(2):
        world.add_worker(f"run_stream-{number}", "run_stream", 2)
    world.pass_time(RECOVERY_S + 1)
    client = world.add_client(b"a")
    send(world, client, b"1", max_attempts=max_attempts, timeout_ms=timeout_ms)
    world.deliver_all()
    [worker] = [worker for worker in world.workers.values() if worker.runs]
    return world, client, b"1", worker


def stuck() -> tuple[World, Client, Worker]:
    """A worker with one slot, whose run does not end on request."""
    world = World(lambda _: (STUBBORN, CHUNK))
    worker = world.add_worker("run_stream-0", "run_stream", 1)
    world.pass_time(RECOVERY_S + 1)
    client = world.add_client(b"a")
    send(world, client, b"1")
    world.deliver_all()
    worker.step((b"a", b"1"))
    return world, client, worker


def play_one(worker: Worker, client: bytes, id: bytes) -> None:
    """Continue a run until it ends."""
    while (client, id) in worker.runs:
        worker.step((client, id))


def play(worker: Worker) -> None:
    """Continue the runs of a worker until they end."""
    while worker.runs:
        for key in worker.runs:
            worker.step(key)


def started(world: World) -> list[tuple[Worker, RunKey]]:
    return [(worker, key) for worker in world.starts for key, _ in worker.started]


def error_type(client: Client, id: bytes) -> str:
    [end] = client.ends(id)
    assert isinstance(end, AxonError), end
    return end.error_type


def assert_streamed_by_one(client: Client, id: bytes, worker: Worker) -> None:
    """Check that a request completed and all its messages came from one worker."""
    *chunks, end = client.events[id]
    assert isinstance(end, Complete), end
    assert {chunk.data.partition(":")[0] for chunk in chunks} == {worker.routing_id.decode()}
    assert [event.seq for event in client.events[id]] == list(range(1, len(chunks) + 2))


def assert_started_again_after_the_resume_window(world: World, client: Client, id: bytes) -> None:
    """Check that a new run with the same id is started on another worker if its first one dies without a message."""
    world.pass_time(limits.RESUME_WINDOW + 1)
    world.add_worker("run_stream-8", "run_stream", 2)
    world.add_worker("run_stream-9", "run_stream", 2)
    world.deliver_all()
    send(world, client, id, max_attempts=3, prompt="another, since workers may have died of the first")
    world.deliver_all()
    [worker] = [worker for worker in world.workers.values() if worker.runs]
    world.kill_worker(worker, 0)
    finish(world)
    assert isinstance(client.ends(id)[0], Complete)
