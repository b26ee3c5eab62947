"""A client's trace continues in the run."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from tests.support.daemon import running

TRACED = """
    from opentelemetry import trace
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.models.function import FunctionModel

    def where():
        return f"{trace.get_current_span().get_span_context().trace_id:032x}"

    async def respond(messages, info):
        return ModelResponse([TextPart(where())])

    async def stream(messages, info):
        yield where()

    traced = Agent(FunctionModel(respond, stream_function=stream))
"""
"""An agent that answers with its trace id."""


def test_the_trace_of_a_client_continues_in_the_run(tmp_path: Path):
    (tmp_path / "traced_agent.py").write_text(textwrap.dedent(TRACED))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "tracestate": "vendor=value"}
    daemon = running(*MODES, AXON_AGENTS="traced=traced_agent:traced", PYTHONPATH=path)
    with daemon as own, Client(own.endpoint) as client:
        for mode in MODES:
            for given, seen in ((header, trace), ({}, "0" * 32), ({"traceparent": "malformed"}, "0" * 32)):
                assert client.stream("traced", "?", mode=mode, **given).complete().result == seen
