"""All harnesses by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fuzz.brokers import BROKER
from fuzz.clients import CLIENTS
from fuzz.harness import Harness
from fuzz.parsers import PARSERS
from fuzz.schemas import SCHEMAS
from fuzz.workers import WORKER

HARNESSES: Final[Mapping[str, Harness]] = {each.name: each for each in (PARSERS, BROKER, WORKER, CLIENTS, SCHEMAS)}
