"""Celery, as far as it is used: one queue of messages that say nothing but "look whether a chunk is due".

Redis (redis://, rediss://, redis+socket://) or RabbitMQ (amqp://). No result backend and no remote control: what
happened stands in the database. A message that is lost, doubled or late changes nothing but when somebody looks.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError

from shared.errors import DependencyError
from shared.observability import context, tracing
from shared.observability.logging import get_logger
from shared.settings.roots import JobsSettings, Settings

QUEUE = "silkrec.jobs"
TASK = "silkrec.jobs.look"
CONNECT_S = 2.0
# Redis gives a message to somebody else once its worker kept it for so long; hard limits end each before that.
VISIBILITY_LIMITS = 2.0
# Longer than the one second that a worker's own BRPOP waits.
SOCKET_S = 5.0
_log = get_logger(__name__)


class BrokerUnavailable(DependencyError):
    code = "broker_unavailable"
    title = "The broker is unavailable"


def make_app(settings: Settings) -> Celery:
    """Nothing is connected before it is used."""
    url, jobs = settings.broker_url(), settings.jobs
    app = Celery("silkrec", broker=url, set_as_current=False)
    app.conf.update(
        broker_connection_timeout=CONNECT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: only the operator gives up
        broker_transport_options=_transport(url, jobs),
        task_queues=(Queue(QUEUE, durable=True),),
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # Behind the limit that a chunk keeps by itself (working.SoftLimit), for what hangs outside of it.
        task_soft_time_limit=(jobs.soft_limit_s + jobs.hard_limit_s) / 2,
        task_time_limit=jobs.hard_limit_s,
        task_serializer="json",
        accept_content=["json"],
        worker_concurrency=jobs.concurrency,
        worker_prefetch_multiplier=1,
        worker_consumer="services.recommender.jobs.consumer:PatientConsumer",
        worker_enable_remote_control=False,  # its reply queues would stay in Redis without a TTL
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a commit is fenced by the database, not by an ack
        worker_proc_alive_timeout=30.0,
    )
    return app


def _transport(url: str, jobs: JobsSettings) -> dict[str, Any]:
    if url.startswith("amqp"):
        return {"confirm_publish": True, "max_retries": 0, "connect_timeout": CONNECT_S}
    return {
        "visibility_timeout": round(VISIBILITY_LIMITS * jobs.hard_limit_s),
        "socket_timeout": SOCKET_S,
        "socket_connect_timeout": CONNECT_S,
        "socket_keepalive": True,
        "max_retries": 0,
    }


class WakeUps:
    """Sends wake-up messages, and counts those that wait: `waiting`, as of the last `top_up`. Blocking; one thread at a
    time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.waiting = 0

    def top_up(self, wanted: int) -> int:
        """Brings the queue to `wanted` messages, never beyond; how many were sent. Raises BrokerUnavailable."""
        try:
            with self._app.connection_for_write(connect_timeout=CONNECT_S) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_S)
                with connection.channel() as channel:
                    waiting = int(Queue(QUEUE, durable=True)(channel).queue_declare().message_count)
                missing = max(0, wanted - waiting)
                self.waiting = waiting + missing
                with self._app.amqp.Producer(connection, auto_declare=False) as producer:
                    self._send(missing, producer=producer)
                return missing
        except (OperationalError, OSError, *self._app.connection_for_write().connection_errors) as error:
            raise BrokerUnavailable(f"the broker takes no wake-ups: {type(error).__name__}") from error

    def send_one(self) -> None:
        """Another look, for whoever is free. What cannot be sent is sent by the sweeper later."""
        try:
            self._send(1)
        except (OperationalError, OSError) as error:
            _log.warning("a wake-up was not sent; the sweeper sends it later", cause=type(error).__name__)

    def _send(self, count: int, **how: Any) -> None:
        """They say in their headers which trace they were sent in: a few lines, where OpenTelemetry's instrumentation
        of Celery would start a span for each look, also for those that find nothing."""
        if count == 0:
            return
        with tracing.own_trace(f"{TASK} send", "producer"):
            for _ in range(count):
                self._app.send_task(TASK, queue=QUEUE, headers=context.outgoing_headers(), retry=False, **how)
