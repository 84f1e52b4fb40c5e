"""The broker's queue and who listens to it. Workers take no remote control, so the jobs service speaks for them."""

from __future__ import annotations

from collections.abc import Iterator

from kombu import Queue
from kombu.exceptions import OperationalError

from services.cli.doctor.finding import Finding
from services.cli.supervisor import holder
from services.recommender.jobs.broker import CONNECT_S, QUEUE, make_app
from shared.settings.roots import EMBEDDED, Settings


def examine(settings: Settings) -> Iterator[Finding]:
    where = _shown(settings.broker_url())
    try:
        waiting, listening = _queue(settings)
    except (OperationalError, OSError) as error:
        embedded = settings.broker.url.get_secret_value() == EMBEDDED
        stopped = embedded and holder(settings) is None
        mend = (
            "`silkrec serve all` starts it"
            if stopped
            else "start it, or set SILKREC_BROKER__URL; jobs wait, none is lost"
        )
        yield Finding("broker", "warn" if stopped else "fail", f"does not answer: {type(error).__name__}", mend, where)
        return
    yield queue(waiting, listening, settings.jobs.max_waiting_wakeups, where)


def _queue(settings: Settings) -> tuple[int, int | None]:
    """(messages that wait, consumers; None where the transport does not count them). Makes nothing: a queue that is not
    there yet is empty. Raises OperationalError, OSError."""
    app = make_app(settings)
    with app.connection_for_read(connect_timeout=CONNECT_S) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_S)
        with connection.channel() as channel:
            try:
                told = Queue(QUEUE, durable=True)(channel).queue_declare(passive=True)
            except connection.channel_errors:
                return 0, None
            counts_consumers = settings.broker_url().startswith("amqp")
            return int(told.message_count), int(told.consumer_count) if counts_consumers else None


def queue(waiting: int, listening: int | None, most: int, where: str) -> Finding:
    """The sweeper never sends beyond `most`, so more comes from nobody of ours; as many say that nobody takes them."""
    listeners = "" if listening is None else f", {listening} workers listen"
    found = f"{waiting} wake-ups wait{listeners}"
    if listening == 0:
        return Finding("broker", "warn", found, "`silkrec serve jobs`, on any machine", where)
    if waiting >= most:
        mend = "workers are busy or away: jobs.concurrency, or `silkrec serve jobs` on another machine"
        return Finding("broker", "warn", found, mend, where)
    return Finding("broker", "ok", found, "", where)


def _shown(url: str) -> str:
    return url if "@" not in url else f"{url.split('://')[0]}://…@{url.rpartition('@')[2]}"
