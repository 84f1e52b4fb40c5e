"""Structured logs: one JSON object a line on stderr (or `console`), ours and the standard library's alike.

`configure()` is called once by a process's entry; before that, structlog's defaults apply. User and visitor ids enter
a log only through `hashed()`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import orjson
import structlog

from shared.observability import context
from shared.settings.roots import LogSettings

KEY_FILE = "log-key"
_KEY_BYTES = 32
# Their INFO lines repeat our access log.
_QUIET = ("uvicorn.access", "httpx", "httpcore", "asyncio", "alembic")
_key = secrets.token_bytes(_KEY_BYTES)

Logger = structlog.typing.FilteringBoundLogger


def get_logger(name: str) -> Logger:
    return cast("Logger", structlog.get_logger(component=name))


def hashed(identifier: str) -> str:
    """16 hex digits: equal ids of one installation get equal hashes, and without its key nobody can look an id up."""
    return hashlib.blake2b(identifier.encode(), key=_key, digest_size=8).hexdigest()


def configure(
    settings: LogSettings, *, service: str = "silkrec", state: Path | None = None, stream: TextIO | None = None
) -> None:
    """Routes everything to `stream` (stderr). The key of `hashed()` is kept in `state`, one an installation."""
    global _key
    if state is not None:
        _key = _installation_key(state / KEY_FILE)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    target = stream if stream is not None else sys.stderr
    structlog.configure(
        processors=_processors(service, settings.format, colours=target.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,  # modules take their logger at import, before this call
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


class _ToStructlog(logging.Handler):
    """The standard library's records, through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {"component": record.name}
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            structlog.get_logger().log(record.levelno, record.getMessage(), **fields)
        except Exception:  # noqa: BLE001  (a log line must never take its caller down; this is logging's own rule)
            self.handleError(record)


def _processors(service: str, form: str, *, colours: bool) -> list[structlog.typing.Processor]:
    def add_context(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        request = context.current()
        if request is not None:
            event.setdefault("request_id", request.request_id)
            event.setdefault("trace_id", request.trace_id)
        return event

    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_context,
    ]
    if form == "console":
        return [*common, structlog.dev.ConsoleRenderer(colors=colours)]
    return [*common, structlog.processors.format_exc_info, structlog.processors.EventRenamer("message"), _render]


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()


def _installation_key(path: Path) -> bytes:
    """Made on first use, readable by the owner only. Processes that start together agree: the first link wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(draft, path)
        except FileExistsError:
            get_logger(__name__).debug("another process made the log key first")
        finally:
            draft.unlink()
    return path.read_bytes()[:64]
