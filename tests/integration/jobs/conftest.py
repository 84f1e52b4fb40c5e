from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.storage.database import Database
from tests.conftest import SettingsFactory
from tests.integration.jobs.world import World, world


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """structlog's default draws each traceback with the values of every frame: a second each."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    yield
    structlog.reset_defaults()


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(settings_factory: SettingsFactory, database: Database, tmp_path: Path) -> Iterator[MakeWorld]:
    """`make_world(**{"jobs.max_attempts": 2})`."""
    with ExitStack() as stack:

        def make(**overrides: Any) -> World:
            (tmp_path / "inbox").mkdir(exist_ok=True)
            fields = {"country": {"type": "string"}}
            given = {
                "data.user_fields": fields,
                "jobs.input_dir": tmp_path / "inbox",
                "jobs.chunk_first_users": 10,
                **overrides,
            }
            return stack.enter_context(world(settings_factory(**given), database))

        yield make


@pytest.fixture
def jobs_world(make_world: MakeWorld) -> World:
    return make_world()
