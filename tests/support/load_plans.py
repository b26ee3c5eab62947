"""Plans of load tests."""

from __future__ import annotations

from dataclasses import replace

from axon_zmq.loadtest.plan import Plan, Scenario


def plan(endpoint: str, scenario: Scenario, **more) -> Plan:
    brief = Plan(
        endpoint=endpoint,
        scenario=scenario,
        rate=None,
        streams=4,
        duration=0.6,
        warmup=0.2,
        most=10_000,
        clients=2,
        timeout=5.0,
        read_ms=20.0,
        drop_every=3.0,
    )
    return replace(brief, **more)
