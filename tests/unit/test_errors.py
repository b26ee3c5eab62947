"""The protocol's errors."""

from __future__ import annotations

from axon_zmq.client.messages import Failed, decode
from axon_zmq.errors import ERROR_TYPES, AxonError
from axon_zmq.protocol.msgpack import pack


def test_every_error_type_has_a_class_and_survives_the_wire():
    for code in ERROR_TYPES:
        error = AxonError.of(code, "what", {"by": "broker"})
        message = decode(b"error", pack(error.to_body())).message
        assert isinstance(message, Failed)
        again = message.error
        assert type(again) is type(error) is not AxonError
        assert (again.error_type, again.details, again.retryable) == (code, {"by": "broker"}, error.retryable)
    assert type(AxonError.of("of_the_future", "?", retryable=True)) is AxonError
