"""Options and fixtures of all tests: one daemon for the whole session, and clients of it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from tests.support import ROOT
from tests.support.daemon import AGENTS, TOOLSETS, Daemon, Dealer, running

for name, max_examples in (("fast", 20), ("normal", 100), ("long", 2000)):
    # No deadline: on a busy machine an example may take any time.
    hypothesis.settings.register_profile(name, deadline=None, max_examples=max_examples)
hypothesis.settings.load_profile("normal")  # unless pytest has --hypothesis-profile


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked `long`")


def pytest_configure() -> None:
    # A command that a script starts in the background ignores SIGINT, and its children inherit that. Tests interrupt
    # processes that they start; a process whose parent has a handler starts with the default one.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest files come first: started last, one of them would run on alone while the other processes idle.
    tiers = ("system", "integration", "docs", "unit")
    items.sort(key=lambda item: tiers.index(item.path.relative_to(ROOT / "tests").parts[0]))
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Replace lone surrogates in captured output: pytest-xdist cannot send them between processes."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests that do not change it."""
    # Daemons of single tests use uvloop if it is installed; this one always uses asyncio.
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
