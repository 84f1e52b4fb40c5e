"""Events in, histories up to date, slates written down."""

from infra.grafana.boards.common import pools, quantiles, rate
from infra.grafana.panels import Board, Panel, Query, Row

F, R = "silkrec_features", "silkrec_recommender"

BOARD = Board(
    "data",
    "events, histories, journal",
    (
        Row(
            "Writing",
            (
                Panel(
                    "Events", "By what became of them.", "ops", (rate(f"{F}_events_total", "outcome"),), stacked=True
                ),
                Panel(
                    "Until the commit begins", "From a request's arrival.", "s", quantiles(f"{F}_event_wait_seconds")
                ),
                Panel("Commit", "One group's transaction.", "s", quantiles(f"{F}_commit_duration_seconds")),
                Panel("Events a commit", "Company makes commits cheap.", "short", quantiles(f"{F}_group_events")),
                Panel(
                    "Waiting, refused",
                    "Events in the queue; refused a second because it was full.",
                    "short",
                    (Query(f"sum({F}_events_queued)", "waiting"), rate(f"{F}_events_refused_total")),
                ),
                Panel("Requests", "By route.", "reqps", (rate(f"{F}_http_requests_total", "route"),), stacked=True),
            ),
        ),
        Row(
            "Histories in Redis",
            (
                Panel(
                    "Behind",
                    "Users whose history in Redis is not the newest.",
                    "short",
                    (Query(f"max({F}_dirty_users)", "users"),),
                ),
                Panel("Written by the sweeper", "Histories a second.", "ops", (rate(f"{F}_histories_rebuilt_total"),)),
                pools("features"),
            ),
        ),
        Row(
            "Journal of served slates",
            (
                Panel(
                    "Written and drained",
                    "Slates a second.",
                    "ops",
                    (rate(f"{R}_journal_slates_written_total"), rate(f"{R}_journal_slates_drained_total")),
                ),
                Panel(
                    "Waiting",
                    "Slates that the database does not hold yet.",
                    "short",
                    (Query(f"sum({R}_journal_slates_waiting)", "slates"),),
                ),
                Panel(
                    "Lost, late, failed",
                    "Lost for ever; answered before the write was confirmed; drains that failed.",
                    "ops",
                    (
                        rate(f"{R}_journal_slates_lost_total", "cause", says="lost:", rare=True),
                        rate(f"{R}_journal_slates_late_total"),
                        rate(f"{R}_journal_drain_failures_total", "cause", says="drain failed:", rare=True),
                    ),
                ),
                Panel("Purged", "Rows past their retention.", "ops", (rate(f"{F}_purged_rows_total", "table"),)),
            ),
        ),
    ),
)
