"""`echo`: answers the prompt itself, word by word. The offline default."""

from __future__ import annotations

from pydantic_ai import Agent

from axon_zmq.worker.registry.offline_models import echo

agent = Agent(echo(), name="echo", description="Answers the prompt itself, word by word; needs no network.")
