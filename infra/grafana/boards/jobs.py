"""Batch jobs: what is due, what wakes the workers, what they told others."""

from infra.grafana.boards.common import RATE, process, rate
from infra.grafana.panels import Board, Panel, Query, Row

P = "silkrec_jobs"

BOARD = Board(
    "jobs",
    "batch jobs",
    (
        Row(
            "Work",
            (
                Panel(
                    "Jobs under way",
                    "Neither finished nor cancelled; counted in the database.",
                    "short",
                    (Query(f"max by (job_type) ({P}_running_jobs)", "{{job_type}}"),),
                ),
                Panel(
                    "Chunks due",
                    "That could be worked on now, counted up to the queue's bound.",
                    "short",
                    (Query(f"max({P}_chunks_due)", "chunks"),),
                ),
                Panel("Started by schedules", "Jobs.", "ops", (rate(f"{P}_scheduled_total", "schedule"),)),
                Panel(
                    "Wake-ups",
                    "Messages that the sweeper sent to the broker.",
                    "ops",
                    (rate(f"{P}_wakeups_sent_total"),),
                ),
                Panel(
                    "Starts of a worker",
                    "More than one an instance is a worker that ended.",
                    "short",
                    (Query(f"sum by (instance) (increase({P}_worker_starts_total[{RATE}]))", "{{instance}}"),),
                ),
                Panel("Webhook", "Calls by outcome.", "ops", (rate(f"{P}_webhook_deliveries_total", "outcome"),)),
            ),
        ),
        Row(
            "Process",
            (
                *process("jobs"),
                Panel("Purged", "Rows past their retention.", "ops", (rate(f"{P}_purged_rows_total", "table"),)),
            ),
        ),
    ),
)
