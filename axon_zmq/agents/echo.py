"""Example agent `echo`: answers with the prompt itself, word by word, and needs no network."""

from __future__ import annotations

from pydantic_ai import Agent

from axon_zmq.worker.registry.offline_models import echo

agent = Agent(echo(), name="echo", description="Repeats the prompt word by word; needs no network.")
