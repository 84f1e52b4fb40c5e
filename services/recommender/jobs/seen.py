"""Which users a job has planned already, on disk: a million in a set are 98 MB."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from types import TracebackType

from services.recommender.jobs.work import SlateAsk


class SeenUsers:
    """Exact. A temporary database that is gone when it is closed; whoever resumes fills it again."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="silkrec-job-", suffix=".db")  # noqa: SIM115
        self._database = sqlite3.connect(self._file.name, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE seen (user_key TEXT PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> SeenUsers:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._database.close()
        self._file.close()

    def new(self, asks: Iterable[SlateAsk]) -> list[SlateAsk]:
        """Those that come for the first time, in their order; of a user who comes twice the first one counts."""
        self._database.execute("BEGIN")
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        found = [ask for ask in asks if self._database.execute(insert, (ask.user_key,)).rowcount == 1]
        self._database.execute("COMMIT")
        return found
