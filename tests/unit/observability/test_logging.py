from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.observability import context
from shared.observability.logging import KEY_FILE, configure, get_logger, hashed
from shared.settings.roots import LogSettings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_service_level_time_and_fields() -> None:
    stream = io.StringIO()
    configure(LogSettings(), service="features", stream=stream)
    get_logger("ingest").warning("queue is full", events=3, where=Path("/x"))
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "queue is full", "level": "warning", "service": "features", "component": "ingest",
        "events": 3, "where": "PosixPath('/x')",
    }  # fmt: skip


def test_a_line_of_the_standard_library_looks_the_same() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream=stream)
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed %d", 7)
    (line,) = lines(stream)
    assert (line["message"], line["component"], line["level"]) == ("failed 7", "uvicorn.error", "error")
    assert "ValueError: broken" in line["exception"]


def test_lines_inside_a_request_carry_its_ids() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream=stream)
    ours = context.RequestContext.accept("r-1", None)
    token = context.enter(ours)
    get_logger("a").info("inside")
    context.leave(token)
    get_logger("a").info("outside")
    inside, outside = lines(stream)
    assert (inside["request_id"], inside["trace_id"]) == ("r-1", ours.trace_id)
    assert "request_id" not in outside


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="warning"), stream=stream)
    get_logger("a").info("no")
    logging.getLogger("b").info("no")
    logging.getLogger("uvicorn.access").info("no")
    assert stream.getvalue() == ""


def test_the_access_lines_of_libraries_do_not_repeat_ours() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="info"), stream=stream)
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("httpx").info("HTTP Request: GET")
    assert stream.getvalue() == ""


def test_configuring_twice_writes_each_line_once() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream=io.StringIO())
    configure(LogSettings(), stream=stream)
    logging.getLogger("b").warning("once")
    assert len(lines(stream)) == 1


def test_the_console_format_is_for_people() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="console"), stream=stream)
    get_logger("a").info("hello", n=1)
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_hashes_of_ids_agree_within_an_installation_and_differ_between_two(tmp_path: Path) -> None:
    def hash_in(folder: Path) -> str:
        configure(LogSettings(), state=folder, stream=io.StringIO())
        return hashed("u:ann")

    first, other, again = hash_in(tmp_path / "a"), hash_in(tmp_path / "b"), hash_in(tmp_path / "a")
    assert first == again
    assert first != other
    assert "ann" not in first
    assert (tmp_path / "a" / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == [KEY_FILE]
