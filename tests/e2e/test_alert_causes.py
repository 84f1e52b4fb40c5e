"""Every alert fires from its real cause in real processes, and arrives as docs/runbooks/messages.md shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import needed
from tests.e2e.alert_causes import ENDED, cause_everything
from tests.e2e.alert_messages import Told, examples, first, masked
from tests.e2e.alert_world import alert_names, world
from tests.servers import MariaDB, RedisServer, program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
VENDORS = ("dingtalk", "wecom")


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, mariadb_server: MariaDB, redis_process: RedisServer
) -> Iterator[Told]:
    """Every message of a suite in which everything goes wrong once."""
    with needed():
        for names in (("prometheus",), ("prometheus-alertmanager", "alertmanager"), ("unshare",)):
            program(*names)
    try:
        with world(tmp_path_factory.mktemp("alerts"), mariadb_server, redis_process) as ours:
            cause_everything(ours)
            yield list(ours.robots.told)
    finally:
        for server in (mariadb_server, redis_process):
            if server.process is None:
                server.start()


@pytest.mark.parametrize("name", alert_names())
def test_an_alert_fires_from_its_cause_and_arrives_as_written_down(told: Told, name: str) -> None:
    for vendor in VENDORS:
        assert masked(first(told, vendor, name)) == masked(examples()[name][0])


@pytest.mark.parametrize("name", ENDED)
def test_that_it_is_over_is_told_as_well(told: Told, name: str) -> None:
    for vendor in VENDORS:
        assert masked(first(told, vendor, name, resolved=True)) == masked(examples()[name][1])


def test_the_page_shows_every_alert_and_no_other() -> None:
    assert list(examples()) == alert_names()
