from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import chromium
from tests.e2e.suite import Suite, fill, serve_all, train_and_promote
from tests.servers import MariaDB, Missing, RedisServer


@pytest.fixture(scope="session")
def suite(
    tmp_path_factory: pytest.TempPathFactory, mariadb_server: MariaDB, redis_process: RedisServer
) -> Iterator[Suite]:
    """One suite on real servers for all tests here; each test leaves it healthy."""
    folder = tmp_path_factory.mktemp("suite")
    url = mariadb_server.create_schema("suite")
    with serve_all(folder, DATABASE__URL=url, REDIS__URL=redis_process.url.removesuffix("0") + "5") as running:
        fill(running)
        train_and_promote(running)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one file, and no longer: while it is open, its event loop runs in this thread and no other can."""
    opened = chromium()
    try:
        running = opened.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    try:
        yield running
    finally:
        opened.__exit__(None, None, None)
