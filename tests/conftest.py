"""Fixtures of all tests: one daemon for the whole session, and clients of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import hypothesis
import pytest

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from tests.support.daemon import AGENTS, TOOLSETS, Daemon, Dealer, running

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed may hold half a surrogate pair, which pytest's processes cannot tell each other."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests that leave it as it was."""
    # Others' workers are on uvloop, where it is installed.
    settings = {"AXON_AGENTS": AGENTS, "AXON_TOOLSETS": TOOLSETS, "AXON_LOOP": "asyncio"}
    with running(*MODES, **settings) as shared:
        yield shared


@pytest.fixture
def dealer(daemon: Daemon) -> Iterator[Dealer]:
    connected = Dealer(daemon.endpoint)
    yield connected
    connected.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as connected:
        yield connected
