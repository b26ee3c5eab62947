"""Agents of the attacked daemon. They must also load in older checkouts."""

from __future__ import annotations

import os
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel

from axon_zmq.worker.registry.offline_models import echo as echo_model
from axon_zmq.worker.registry.offline_models import tools

SECRETS = {
    "ATTACK_DB_PASSWORD": "hunter2-correct-horse",
    "ATTACK_API_KEY": "sk-planted-0123456789abcdef",
    "ATTACK_SERVICE_TOKEN": "tok-planted-fedcba9876543210",
}
"""Secrets that the scene `secrets` plants in the environment of the daemon."""


def _echo() -> FunctionModel:
    made: Any = echo_model
    return made()


echo = Agent(_echo(), name="echo")
caller = Agent(tools(), name="caller")
"""Calls the client's tools that its prompt lists."""
leaky = Agent(tools(), name="leaky")


@leaky.tool_plain
def connect(place: str) -> str:
    """Fail as a database driver does: with the whole URL in the message."""
    secrets = " ".join(os.environ.get(name, "") for name in SECRETS)
    raise RuntimeError(
        f"cannot connect to postgres://app:{os.environ.get('ATTACK_DB_PASSWORD')}@{place}/ with {secrets}"
    )


def __getattr__(name: str) -> Agent:
    """Fail while the agent `broken` is loaded, with secrets in the message."""
    if name == "broken":
        secrets = " ".join(os.environ.get(name, "") for name in SECRETS)
        raise RuntimeError(f"no database at postgres://app:{os.environ.get('ATTACK_DB_PASSWORD')}@db/ with {secrets}")
    raise AttributeError(name)


NAMES = ",".join(f"{name}=attack.agents:{name}" for name in ("echo", "caller", "leaky", "broken"))
"""Value of `AXON_AGENTS`."""
