"""Type aliases for msgpack values, as they are sent and received. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

Value: TypeAlias = "datetime | bytes | str | float | int | bool | Sequence[Value] | Mapping[str, Value] | None"
"""Value that msgpack can pack. Integers must fit into 64 bits, floats must be finite, times need a time zone, and the
keys of maps must be text."""
Body: TypeAlias = "Mapping[str, Value]"
"""Header or body of a message: a map with text as keys."""
