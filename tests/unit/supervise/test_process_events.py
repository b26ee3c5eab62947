"""Events of supervisord, decoded."""

from __future__ import annotations

from axon_zmq.supervise.process_events import Event, EventReader, MalformedEvent, OtherEvent, ProcessState
from tests.support.supervisor_events import event


def test_events_are_decoded_the_same_however_the_bytes_are_split():
    written = b"".join(
        (
            event("PROCESS_STATE_RUNNING", "processname:run-1 groupname:größer pid:7"),
            event("TICK_5", "when:1"),
            b"no header at all\n",
            event("PROCESS_STATE_EXITED", "processname:run-1 pid:many"),
            event("PROCESS_STATE_STOPPED", "processname:run-1"),
        )
    )
    expected = [
        ProcessState("run-1", "RUNNING", 7),
        OtherEvent(),
        MalformedEvent("header", b"no header at all"),
        MalformedEvent("PROCESS_STATE_EXITED", "processname:run-1 pid:many"),
        ProcessState("run-1", "STOPPED", 0),
    ]
    for size in (1, 7, len(written)):
        reader = EventReader()
        seen: list[Event] = []
        for start in range(0, len(written), size):
            reader.feed(written[start : start + size])
            while (each := reader.next()) is not None:
                seen.append(each)
        assert seen == expected
