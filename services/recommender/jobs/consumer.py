"""How the worker finds its broker again: every few seconds, however long it was away."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from shared.observability.logging import get_logger

# Celery's own waits grow to 30 s, so that jobs would stand still for half a minute after an outage of minutes.
FIRST_WAIT_S, STEP_S, LONGEST_WAIT_S = 0.2, 0.4, 3.0
_log = get_logger(__name__)


class PatientConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Named by Celery's setting `worker_consumer`."""

    def ensure_connected(self, conn: Any) -> Any:
        """Blocks until the broker answers, or the worker is told to end."""

        def failed(error: Exception, wait_s: float) -> None:
            _log.warning("the broker does not answer", cause=type(error).__name__, wait_s=round(wait_s, 1))

        waits = {"interval_start": FIRST_WAIT_S, "interval_step": STEP_S, "interval_max": LONGEST_WAIT_S}
        found = conn.ensure_connection(failed, None, callback=maybe_shutdown, **waits)
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return found
