"""Batch jobs: what is due, what wakes the workers, what they told others."""

from infra.grafana.boards.common import RATE, pools, process, quantiles, rate
from infra.grafana.panels import Board, Panel, Query, Row

P, W = "silkrec_jobs", "silkrec_jobs_worker"

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
                Panel("Started by schedules", "Jobs.", "ops", (rate(f"{P}_scheduled_total", "schedule", rare=True),)),
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
                Panel(
                    "Webhook",
                    "Calls by outcome.",
                    "ops",
                    (rate(f"{P}_webhook_deliveries_total", "outcome", rare=True),),
                ),
            ),
        ),
        Row(
            "Chunks",
            (
                Panel(
                    "Leased", "A second, by kind.", "ops", (rate(f"{W}_chunks_started_total", "kind"),), stacked=True
                ),
                Panel(
                    "Ended",
                    "`waits`: a dependency is away, or it is a plan's next turn; `retried` and `parked` failed.",
                    "ops",
                    (rate(f"{W}_chunks_total", "outcome"),),
                    stacked=True,
                ),
                Panel(
                    "Duration",
                    "Of chunks with users, from the lease to the commit.",
                    "s",
                    quantiles(f"{W}_chunk_duration_seconds", '{kind="work"}'),
                ),
                Panel(
                    "Users", "A second, of all workers.", "ops", (rate(f"{W}_users_total", "outcome"),), stacked=True
                ),
                Panel(
                    "Broker",
                    "Messages that wait, and what workers found behind those that they took.",
                    "short",
                    (
                        Query(f"max({P}_queue_messages)", "waiting"),
                        rate(f"{W}_looks_total", "found", says="found:"),
                    ),
                ),
                Panel(
                    "Leases that their worker did not end",
                    "Of dead workers of the machine, ended early; and taken over by another worker.",
                    "ops",
                    (rate(f"{P}_leases_ended_total"), rate(f"{W}_leases_taken_over_total")),
                ),
            ),
        ),
        Row(
            "Processes",
            (
                *process("jobs"),
                *process("jobs_worker"),
                pools("jobs"),
                pools("jobs_worker"),
                Panel(
                    "Deaths",
                    "Background tasks that ended unasked.",
                    "ops",
                    (
                        rate(f"{P}_background_deaths_total", "task", says="jobs:"),
                        rate(f"{W}_background_deaths_total", "task", says="worker:"),
                    ),
                ),
                Panel("Purged", "Rows past their retention.", "ops", (rate(f"{P}_purged_rows_total", "table"),)),
            ),
        ),
    ),
)
