"""Is it well? The first page when somebody is woken."""

from infra.grafana.boards.common import RATE, process, quantiles, rate
from infra.grafana.panels import Board, Panel, Query, Row

RECOMMEND = '{route="/v1/recommend"}'
REQUESTS = "silkrec_recommender_http_requests_total"
DURATION = "silkrec_recommender_http_request_duration_seconds"

BOARD = Board(
    "overview",
    "overview",
    (
        Row(
            "Slates",
            (
                Panel(
                    "In time",
                    "Slates within 68 ms; the objective is 99.9 %.",
                    "percentunit",
                    (
                        Query(
                            f'sum(rate({DURATION}_bucket{{route="/v1/recommend",le="0.068"}}[{RATE}])) / '
                            f"sum(rate({DURATION}_count{RECOMMEND}[{RATE}]))",
                            "in time",
                        ),
                    ),
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "A second",
                    "Requests of /v1/recommend.",
                    "reqps",
                    (rate(f"{DURATION}_count", matchers=RECOMMEND),),
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "p99",
                    "Of /v1/recommend, by the server's clock.",
                    "s",
                    (quantiles(DURATION, RECOMMEND)[2],),
                    kind="stat",
                    width=6,
                    line=0.05,
                ),
                Panel(
                    "Processes that answer",
                    "By Prometheus' own scrape.",
                    "short",
                    (Query('sum(up{job="silkrec"})', "up"), Query('count(up{job="silkrec"})', "of")),
                    kind="stat",
                    width=6,
                ),
                Panel("Latency", "The deadline is 68 ms.", "s", quantiles(DURATION, RECOMMEND), line=0.068),
                Panel(
                    "Rungs",
                    "Which step of the ladder a slate stands on; `model` is the best one.",
                    "reqps",
                    (rate("silkrec_recommender_slates_total", "rung"),),
                    stacked=True,
                ),
                Panel(
                    "Given up",
                    "Stages that gave something up, and why.",
                    "ops",
                    (rate("silkrec_recommender_degraded_stages_total", "stage", "cause", rare=True),),
                ),
            ),
        ),
        Row(
            "Answers",
            (
                Panel("Recommender", "By status.", "reqps", (rate(REQUESTS, "status"),), stacked=True),
                Panel(
                    "Features",
                    "By status.",
                    "reqps",
                    (rate("silkrec_features_http_requests_total", "status"),),
                    stacked=True,
                ),
                Panel(
                    "Inference",
                    "Requests by what became of them.",
                    "reqps",
                    (rate("silkrec_inference_requests_total", "outcome"),),
                    stacked=True,
                ),
                Panel(
                    "Late",
                    "Answers handed over after their deadline.",
                    "ops",
                    (rate("silkrec_recommender_deadline_misses_total", "route", rare=True),),
                ),
                Panel(
                    "Deaths",
                    "Background tasks that ended unasked.",
                    "ops",
                    (
                        rate("silkrec_recommender_background_deaths_total", "task", says="recommender"),
                        rate("silkrec_features_background_deaths_total", "task", says="features"),
                        rate("silkrec_inference_background_deaths_total", "task", says="inference"),
                    ),
                ),
                Panel(
                    "Disk",
                    "Free on the disk of the state folder: journal, artifacts, SQLite.",
                    "percentunit",
                    (
                        Query(
                            "min(silkrec_recommender_state_free_bytes / silkrec_recommender_state_size_bytes)",
                            "recommender",
                        ),
                        Query(
                            "min(silkrec_inference_state_free_bytes / silkrec_inference_state_size_bytes)", "inference"
                        ),
                    ),
                ),
            ),
        ),
        Row("Processes", (*process("recommender"), *process("features"), *process("inference"))),
    ),
)
