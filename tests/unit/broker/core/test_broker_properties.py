"""The broker core under random histories: hypothesis drives clients, workers, losses and time."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from axon_zmq.broker.core.broker import CLIENT_GRACE_S
from axon_zmq.broker.core.quarantine import STRIKES
from axon_zmq.protocol import limits
from tests.support.broker_helpers import Bench, FakeWorker, Key

CLIENTS = [b"a", b"b", b"c"]


class BrokerMachine(RuleBasedStateMachine):
    """Each rule is a possible event; the invariants are promises to a client."""

    @initialize(queued=st.integers(1, 6), of_client=st.integers(1, 6))
    def start(self, queued: int, of_client: int) -> None:
        self.bench = Bench(max_queued=queued, max_queued_per_client=of_client)
        self.requests: dict[Key, int] = {}
        """Every run ever sent, and its `max_attempts`."""
        self.left_with: Counter[Key] = Counter()
        """How often a run was on a worker that died while leaving, which does not make the run suspect."""
        self.names = 0

    # --- events -------- ---------------------------------------------------------------------------

    @rule(
        client=st.sampled_from(CLIENTS),
        timeout_ms=st.integers(1, 20_000),
        attempts=st.integers(1, 3),
        keep=st.booleans(),
    )
    def request(self, client: bytes, timeout_ms: int, attempts: int, keep: bool) -> None:
        self.names += 1
        id = b"%d" % self.names
        self.requests[client, id] = attempts
        header = {"timeout_ms": timeout_ms, "max_attempts": attempts, "on_disconnect": "keep" if keep else "cancel"}
        self.bench.send(client, "run", id, header, id)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        client, id = data.draw(st.sampled_from(list(self.requests)))
        if self.bench.broker.runs.get((client, id)) is not None:
            self.bench.send(client, "run", id, None, id)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), kind=st.sampled_from(["cancel", "resume", "steer", "tool_result", "nonsense"]))
    def about(self, data: st.DataObject, kind: str) -> None:
        client, id = data.draw(st.sampled_from(list(self.requests)))
        if (
            kind != "nonsense" or self.bench.broker.runs.get((client, id)) is not None
        ):  # without a run it is answered with an error
            header = {"call_id": "c"} if kind == "tool_result" else None
            self.bench.send(client, kind, id, header, b"body" if kind == "steer" else b"")

    @rule(slots=st.integers(1, 3))
    def worker_comes(self, slots: int) -> None:
        self.names += 1
        self.bench.add_worker(b"worker-%d" % self.names, slots=slots)

    @precondition(lambda self: self.bench.workers)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        worker = self._any_worker(data)
        if self.bench.broker.workers.get(worker.identity).is_leaving:
            self.left_with.update(worker.runs.keys())
        self.bench.lose(worker)

    @precondition(lambda self: self.bench.workers)
    @rule(data=st.data())
    def worker_leaves(self, data: st.DataObject) -> None:
        self.bench.feed_control(self._any_worker(data), b"leaving")

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def chunk(self, data: st.DataObject) -> None:
        self.bench.chunk(*data.draw(st.sampled_from(self._running())))

    @precondition(lambda self: self._running())
    @rule(data=st.data(), kind=st.sampled_from([b"complete", b"error"]))
    def finish(self, data: st.DataObject, kind: bytes) -> None:
        self.bench.finish(*data.draw(st.sampled_from(self._running())), kind)

    @rule(client=st.sampled_from(CLIENTS), what=st.sampled_from(["client_gone", "client_back", "client_blocked"]))
    def connection(self, client: bytes, what: str) -> None:
        getattr(self.bench, what)(client)

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, CLIENT_GRACE_S, limits.RESUME_WINDOW + 1]))
    def time_passes(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    def _any_worker(self, data: st.DataObject) -> FakeWorker:
        return data.draw(st.sampled_from(list(self.bench.workers.values())))

    def _running(self) -> list[tuple[FakeWorker, Key]]:
        return [(worker, key) for worker in self.bench.workers.values() for key in worker.runs]

    # --- promises ------- --------------------------------------------------------------------------

    @invariant()
    def a_run_is_held_by_one_worker_at_most_and_never_after_its_end(self) -> None:
        for key in self.requests:
            holders = self.bench.holders(key)
            assert len(holders) <= 1
            if holders:
                assert not self.bench.terminals(key)

    @invariant()
    def starts_are_within_max_attempts_and_none_follows_a_relayed_message(self) -> None:
        for key, attempts in self.requests.items():
            assert sum(started == key for _, started, _ in self.bench.dispatched) <= attempts

    @invariant()
    def a_run_that_was_told_something_is_not_started_again(self) -> None:
        for worker in self.bench.workers.values():
            for kind, id, _ in worker.told:
                if kind in ("steer", "tool_result"):
                    starts = [key for _, key, _ in self.bench.dispatched if key[1] == id]
                    assert starts, "told before it was started"
                    told_at = worker.identity
                    assert [w for w, key, _ in self.bench.dispatched if key[1] == id][-1] == told_at

    @invariant()
    def the_first_terminal_is_the_only_one_but_for_replays_of_it(self) -> None:
        for key in self.requests:
            terminals = [(kind, body) for kind, body in self.bench.terminals(key) if not _unknown(body)]
            assert all(terminal == terminals[0] for terminal in terminals[1:])

    @invariant()
    def seq_is_gapless_within_each_start(self) -> None:
        for key in self.requests:
            numbers = [body["seq"] for _, body in self.bench.replies(*key) if "seq" in body]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def slots_are_counted_as_the_workers_count_them(self) -> None:
        for worker in self.bench.broker.workers:
            held = self.bench.workers[worker.routing_id].runs
            assert set(worker.runs) == set(held)
            assert worker.busy == len(held) <= worker.slots

    @invariant()
    def queues_are_within_their_bounds_and_hold_only_queued_runs(self) -> None:
        broker = self.bench.broker
        queued = [run for run in broker.runs if run.state.value == "queued"]
        pool = broker.workers.pools["run"]
        # A run returned by a lost worker is queued even if the queue is full.
        assert pool.waiting == len(queued)
        assert pool.waiting_bytes == sum(len(run.body) + 4 * len(run.undelivered) for run in queued)

    @invariant()
    def at_most_two_workers_die_of_a_request(self) -> None:
        for key in self.requests:
            assert sum(started == key for _, started, _ in self.bench.dispatched) <= STRIKES + self.left_with[key]

    @invariant()
    def the_journal_holds_what_waits_and_was_never_started(self) -> None:
        started = {key for _, key, _ in self.bench.dispatched}
        waiting = {run.key for run in self.bench.broker.runs if run.state.value == "queued"}
        assert self.bench.journal == waiting - started

    @invariant()
    def open_requests_of_clients_are_those_without_an_end(self) -> None:
        broker = self.bench.broker
        for identity, client in broker.clients:
            unfinished = {run.id for run in broker.runs if run.client == identity and run.state.value != "ended"}
            assert set(client.open) == unfinished

    def teardown(self) -> None:
        """Whatever happened before: with workers and enough time every run ends, and no state remains."""
        if not hasattr(self, "bench"):
            return
        for _ in range(50):
            if not self._running() and not self.bench.broker.workers.pools["run"].waiting:
                break
            if not any(worker.state.value == "ready" for worker in self.bench.broker.workers):
                self.worker_comes(3)
            for worker, key in self._running():
                self.bench.finish(worker, key)
        for key in self.requests:
            assert self.bench.terminals(key), key
        self.bench.pass_time(limits.RESUME_WINDOW + 1)
        assert not len(self.bench.broker.runs)
        assert not self.bench.broker.clients.gone()


def _unknown(body: dict[str, object]) -> bool:
    return body.get("error_type") == "unknown_request"


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(
    max_examples=settings.default.max_examples * 3 // 2,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
