from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from shared.errors import DatabaseUnavailable, NotFound, ValidationFailed
from shared.observability.tasks import TaskOwner
from shared.storage import keys
from shared.storage.database import Database
from shared.storage.keys import KeyCache
from shared.storage.tables import api_keys

pytestmark = pytest.mark.integration


def test_a_key_is_stored_as_a_hash_only(database: Database) -> None:
    made = keys.create(database, "server", "shop back end")
    assert made.text.startswith("sk_server_")
    with database.read() as connection:
        row = connection.execute(select(api_keys).where(api_keys.c.key_id == made.key.key_id)).one()
    assert made.text not in repr(row)
    assert row.key_hash == keys.hash_of(made.text)


def test_a_revoked_key_stays_listed_and_revoking_again_changes_nothing(database: Database) -> None:
    made = keys.create(database, "client", "web")
    assert keys.revoke(database, made.key.key_id, now_us=5).revoked_at_us == 5
    assert keys.revoke(database, made.key.key_id, now_us=9).revoked_at_us == 5
    assert made.key.key_id in {key.key_id for key in keys.list_keys(database)}
    assert keys.has_keys(database)


def test_what_cannot_be_a_key_is_refused(database: Database) -> None:
    with pytest.raises(ValidationFailed, match="client, server, admin"):
        keys.create(database, "root", "x")
    for name in ("", "a\nb", "x" * 129):
        with pytest.raises(ValidationFailed, match="name"):
            keys.create(database, "admin", name)
    with pytest.raises(NotFound):
        keys.revoke(database, "key_none")


def test_the_cache_follows_the_table(database: Database) -> None:
    async def test() -> None:
        cache = KeyCache(database)
        with pytest.raises(DatabaseUnavailable):
            cache.has_keys()
        made = keys.create(database, "admin", "ops")
        assert await cache.refresh()
        assert cache.has_keys()
        found = cache.find(made.text)
        assert found is not None
        assert (found.role, found.name) == ("admin", "ops")
        assert cache.find(made.text + "x") is None
        keys.revoke(database, made.key.key_id)
        assert await cache.refresh()
        assert cache.find(made.text) is None
        assert cache.has_keys()

    asyncio.run(test())


def test_the_cache_refreshes_itself_in_the_background(database: Database) -> None:
    async def test() -> None:
        ticks: asyncio.Queue[float] = asyncio.Queue()
        gate = asyncio.Semaphore(0)

        async def sleep(seconds: float) -> None:
            await ticks.put(seconds)
            await gate.acquire()

        cache, tasks = KeyCache(database, sleep=sleep), TaskOwner()
        await cache.start(tasks)
        assert await ticks.get() == keys.REFRESH_S
        made = keys.create(database, "server", "late")
        assert cache.find(made.text) is None
        gate.release()
        await ticks.get()
        assert cache.find(made.text) is not None
        await tasks.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_the_last_known_keys_hold_while_the_database_is_down(database: Database) -> None:
    async def test() -> None:
        made = keys.create(database, "server", "x")
        failing = _Failing(database)
        cache = KeyCache(failing)
        assert await cache.refresh()
        failing.down = True
        assert not await cache.refresh()
        assert cache.find(made.text) is not None
        failing.down = False
        assert await cache.refresh()

    asyncio.run(test())


class _Failing(Database):
    """The same database, whose pool of threads finds nobody at home while `down`."""

    def __init__(self, real: Database) -> None:
        self.down = False
        self._real = real

    async def run(self, work, *args):  # type: ignore[no-untyped-def]
        if self.down:
            raise DatabaseUnavailable("down")
        return await self._real.run(work, self._real)
