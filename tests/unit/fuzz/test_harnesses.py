"""The fuzzing harnesses, with the same inputs in each run, and with those of hypothesis."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from axon_zmq.protocol import backend, frames, kinds
from axon_zmq.protocol.msgpack import pack
from fuzz import brokers, corpus, engine, parsers
from fuzz.harness import BrokenInvariantError, Harness, Outcome
from fuzz.harnesses import HARNESSES
from fuzz.mutations import RAW
from fuzz.steps import MAX_STEPS, Step, decode, encode

MIN_PASSED = 0.25
STEPS = st.lists(st.tuples(st.integers(0, 255), st.lists(st.binary(max_size=300), max_size=6)), max_size=4)


@pytest.mark.parametrize("harness", HARNESSES.values(), ids=HARNESSES)
def test_no_input_breaks_an_invariant_and_a_quarter_of_the_messages_pass_the_parser(harness: Harness):
    counts = engine.short(harness)
    assert counts.inputs == harness.ci_inputs
    assert counts.share >= MIN_PASSED, counts


@pytest.mark.parametrize("harness", HARNESSES.values(), ids=HARNESSES)
def test_no_input_of_hypothesis_breaks_an_invariant(harness: Harness):
    generated = st.integers(0, 2**64 - 1).map(lambda seed: harness.make(Random(seed)))
    arbitrary = STEPS.map(lambda steps: encode(Step(*each) for each in steps)) | st.binary(max_size=300)

    @settings(max_examples=settings.default.max_examples)
    @given(data=generated | arbitrary)
    @example(data=b"")
    def run(data: bytes) -> None:
        harness(data)

    run()


@given(STEPS)
def test_steps_are_decoded_as_they_were_encoded(steps: list[tuple[int, list[bytes]]]):
    made = [Step(*each) for each in steps]
    assert decode(encode(made)) == made


@given(st.binary())
def test_any_bytes_are_an_input(data: bytes):
    assert len(decode(data)) <= MAX_STEPS


def test_the_corpus_has_every_kind_in_every_direction():
    assert {message[0] for message in corpus.from_client()} == set(frames.HEADERS)
    assert {message[0] for message in corpus.to_broker()} == set(backend.TO_BROKER)
    about = {*kinds.REQUEST_KINDS, kinds.TOOL_RESULT, kinds.STEER, kinds.CREDIT, kinds.RESUME}
    about |= {kinds.END, kinds.GONE, kinds.BACK}
    assert {message[1] for message in corpus.to_worker()} == about | set(backend.TO_WORKER)
    to_client = {kinds.ACCEPTED, kinds.CHUNK, kinds.LOG, kinds.TOOL_CALL, kinds.TOOL_CANCELLED, kinds.COMPLETE}
    to_client |= {kinds.ERROR, kinds.CATALOG, kinds.RESUMED, kinds.REFUSED, kinds.PONG, kinds.ALIVE}
    assert {message[0] for message in corpus.to_client()} == to_client


def test_every_message_of_the_corpus_passes_its_parser():
    for op, messages in (
        (parsers.TO_BROKER, corpus.to_broker()),
        (parsers.TO_WORKER, corpus.to_worker()),
        (parsers.TO_CLIENT, corpus.to_client()),
        (parsers.FROM_CLIENT, corpus.from_client()),
    ):
        for message in messages:
            assert parsers.examine([Step(op, message)]).passed == 1, message


def test_equal_seeds_make_equal_inputs_and_mutations():
    for harness in HARNESSES.values():
        data = harness.make(Random(7))
        assert data == harness.make(Random(7))
        assert harness.mutate(data, Random(3), 4096) == harness.mutate(data, Random(3), 4096)
        assert len(harness.mutate(data, Random(3), 64)) <= 64


def test_hostile_frames_of_the_mutations_are_refused_by_the_parser():
    for frame in RAW[2:]:
        outcome = parsers.examine([Step(parsers.FROM_CLIENT, [b"cancel", b"1", frame, b""])])
        assert outcome.passed == 0, frame[:40]


def test_an_input_that_takes_too_long_breaks_an_invariant(monkeypatch: pytest.MonkeyPatch):
    clock = iter((0.0, 10.0))
    monkeypatch.setattr("fuzz.harness.time.thread_time", lambda: next(clock))
    with pytest.raises(BrokenInvariantError, match=r"took 10\.00 s of CPU time, the limit is 2\.00"):
        HARNESSES["parsers"](encode([Step(0, [b"ping", b"1"])]))


def test_a_replay_that_fails_after_the_loss_of_a_worker_is_no_second_end_of_the_run():
    ready = backend.Ready(v=1, mode="run", slots=1, name="run-1", holds=(), pid=1)
    request = Step(0, [kinds.RUN, b"1", b"", pack({"agent": "echo", "prompt": "hi"})])
    registers = [Step(brokers.FROM_WORKER, [ready.kind, ready.pack()]), Step(brokers.OTHER + 4, [])]
    ends, loses_worker = Step(brokers.OTHER + 2, []), Step(brokers.OTHER + 24, [])
    assert brokers.examine([*registers, request, ends, loses_worker, request]).passed == 3


def test_a_finding_is_saved_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path):
    def fail(steps: object) -> Outcome:
        raise ValueError("a bug")

    findings = tmp_path / "fuzz" / "findings"
    findings.parent.mkdir()
    monkeypatch.setattr(engine, "FINDINGS", findings)
    broken = Harness(**{**HARNESSES["parsers"].__dict__, "examine": fail})
    counts = engine.work([broken], seed=1, inputs=3)
    assert counts.inputs == 3
    assert all("ValueError: a bug" in finding for finding in counts.findings)
    [saved, *_] = findings.glob("parsers-*.bin")
    with redirect_stdout(io.StringIO()), pytest.raises(ValueError, match="a bug"):
        broken(saved.read_bytes())
    assert "ValueError" in saved.with_suffix(".txt").read_text()


def test_a_long_run_keeps_inputs_that_do_something_new():
    counts = engine.work(list(HARNESSES.values()), seed=5, inputs=300)
    assert counts.inputs == 300
    assert counts.findings == []
    assert counts.grown > 20
    assert counts.share >= MIN_PASSED
