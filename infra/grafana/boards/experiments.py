"""What operators need of experiments. Results, with their intervals, are on SilkRec's own dashboard."""

from infra.grafana.boards.common import or_none, rate
from infra.grafana.panels import Board, Panel, Query, Row

R = "silkrec_recommender"

BOARD = Board(
    "experiments",
    "experiments",
    (
        Row(
            "Can their data be believed?",
            (
                Panel(
                    "Alarms",
                    "Faults in the data of experiments that run, such as a sample-ratio mismatch.",
                    "short",
                    (
                        Query(
                            or_none(f"max by (experiment, code) ({R}_experiment_alarms)", "code"),
                            "{{experiment}} {{code}}",
                        ),
                    ),
                    width=12,
                    line=1,
                ),
                Panel(
                    "Slates that no analysis sees",
                    "Lost, or left out on purpose: exposures went with them.",
                    "ops",
                    (
                        rate(f"{R}_journal_slates_lost_total", "cause", says="lost:", rare=True),
                        rate(f"{R}_journal_slates_skipped_total", "cause", says="left out:", rare=True),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Serving them",
            (
                Panel(
                    "Pages and results",
                    "Requests of the dashboard and of /v1/experiments.",
                    "reqps",
                    (rate(f"{R}_http_requests_total", "route", matchers='{route=~"/dashboard.*|/v1/experiments.*"}'),),
                    width=12,
                ),
                Panel(
                    "Slates by rung",
                    "A variant that overloads a stage shows here before it shows in results.",
                    "reqps",
                    (rate(f"{R}_slates_total", "rung"),),
                    width=12,
                    stacked=True,
                ),
            ),
        ),
    ),
)
