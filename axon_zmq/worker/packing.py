"""What an agent answers, as msgpack: Python's and pydantic's types made plain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import isfinite
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from axon_zmq import wire
from axon_zmq.errors import ModelError


def _plain(value: Any) -> Any:
    """One step towards msgpack, for a type that it does not know."""
    if isinstance(value, BaseModel):
        return _clean(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _clean({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return _clean(to_jsonable_python(value))


def _clean(value: Any) -> Any:
    """A value as the contract wants it: string keys, and nil for what is no number."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def packer() -> Callable[[Any], bytes]:
    """A packing function for one thread.

    The function raises ModelError `invalid_output` for what msgpack cannot hold, such as integers over
    64 bits: the value is a tool's or a model's.
    """
    pack = wire.packer(_plain)

    def packed(value: Any) -> bytes:
        nonlocal pack
        try:
            return pack(_clean(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            pack = wire.packer(_plain)  # a Packer that failed midway still holds what it had packed
            raise ModelError("invalid_output", f"the answer cannot be packed as msgpack: {error}") from error

    return packed
