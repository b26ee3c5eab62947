"""Chunks that wait for credit are merged and stay in order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.protocol import limits
from axon_zmq.worker.delivery.credit import Credit


def chunk(data: str, type: str = "text", step: int = 1, part: int = 0) -> dict[str, Any]:
    return {"type": type, "data": data, "step": step, "part": part}


PIECES = st.tuples(
    st.sampled_from(["text", "thinking", "output", "tool_started"]), st.text(max_size=4), st.integers(1, 2)
)


@given(st.lists(st.one_of(PIECES, st.none()), max_size=40))
def test_merged_text_is_complete_and_in_order(steps):
    credit = Credit(0, len)
    sent, got = [], []
    for step in steps:
        if step is None:
            if credit.waiting:
                got.append(credit.take()[1])
        else:
            type, data, number = step
            sent.append(chunk(data, type, number))
            credit.hold(b"chunk", sent[-1])
    while credit.waiting:
        got.append(credit.take()[1])
    assert whole(got) == whole(sent)
    assert credit.bytes == 0


def whole(chunks: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Merge consecutive chunks of the same type and step: text is joined, of outputs the last one is kept."""
    runs: list[tuple[str, int, str]] = []
    for each in chunks:
        type, step, data = each["type"], each["step"], each["data"]
        if runs and runs[-1][:2] == (type, step) and type != "tool_started":
            runs[-1] = (type, step, data if type == "output" else runs[-1][2] + data)
        else:
            runs.append((type, step, data))
    return runs


def test_a_credit_window_is_full_at_the_documented_bound():
    credit = Credit(0, len)
    credit.hold(b"chunk", chunk("x" * (limits.WAITING_BYTES - 1)))
    assert not credit.full
    credit.hold(b"chunk", chunk("x"))
    assert credit.full
    credit.take()
    assert not credit.full
