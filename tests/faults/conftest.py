"""One tiny world for all tests of faults; a fake hub that its children can reach."""

from threading import Thread

import pytest
from tests.faults.world import World
from tests.hub.conftest import TOKEN, Hub


@pytest.fixture(scope="session")
def world(server, tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), server)


@pytest.fixture(scope="session")
def stand_in():
    """The hub, and what a child needs to reach it."""
    hub = Hub()
    Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield hub, {"url": hub.url, "token": TOKEN}
    hub.shutdown()
    hub.server_close()


def pytest_terminal_summary(terminalreporter):
    """Print how many kills happened in passing tests; kills at unreached points do not count."""
    passed = terminalreporter.stats.get("passed", [])
    kills = [value for report in passed for name, value in report.user_properties if name == "kills"]
    if kills:
        terminalreporter.write_line(
            f"{sum(kills)} SIGKILLs in {len(kills)} runs, all with the result of an undisturbed run"
        )
