"""From the request to the slate: stages, index, catalogue, what filters take away."""

from infra.grafana.boards.common import RATE, pools, rate
from infra.grafana.panels import Board, Panel, Query, Row

P = "silkrec_recommender"
BY_STAGE = f"sum by (le, stage) (rate({P}_stage_duration_seconds_bucket[{RATE}]))"
ITEMS, SLATES = f"rate({P}_slate_items_sum[{RATE}])", f"rate({P}_slate_items_count[{RATE}])"
EMPTY = f'rate({P}_slate_items_bucket{{le="0.0"}}[{RATE}])'

BOARD = Board(
    "retrieval",
    "retrieval and slates",
    (
        Row(
            "Stages",
            (
                Panel(
                    "p50 of each stage",
                    "Wall time.",
                    "s",
                    (
                        Query(
                            f"histogram_quantile(0.5, {BY_STAGE})",
                            "{{stage}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "p99 of each stage",
                    "Wall time.",
                    "s",
                    (
                        Query(
                            f"histogram_quantile(0.99, {BY_STAGE})",
                            "{{stage}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Taken away",
                    "Candidates that a filter removed.",
                    "ops",
                    (rate(f"{P}_candidates_removed_total", "stage"),),
                ),
                Panel(
                    "Stood in",
                    "What replaced a stage that gave up.",
                    "ops",
                    (rate(f"{P}_degraded_stages_total", "stage", "fallback", rare=True),),
                ),
                Panel(
                    "Last guard",
                    "Answers given because the pipeline overran.",
                    "ops",
                    (rate(f"{P}_guard_answers_total", "route", rare=True),),
                ),
            ),
        ),
        Row(
            "Slates",
            (
                Panel(
                    "Items a slate",
                    "Mean, by route.",
                    "short",
                    (
                        Query(
                            f"sum by (route) ({ITEMS}) / sum by (route) ({SLATES})",
                            "{{route}}",
                        ),
                    ),
                ),
                Panel(
                    "Empty",
                    "Share of slates without an item.",
                    "percentunit",
                    (
                        Query(
                            f"sum({EMPTY}) / sum({SLATES})",
                            "empty",
                        ),
                    ),
                    line=0.01,
                ),
                Panel("By scene", "Slates a second.", "reqps", (rate(f"{P}_slates_total", "scene"),), stacked=True),
            ),
        ),
        Row(
            "What is served",
            (
                Panel(
                    "Age of the index",
                    "New items are served by the fresh source alone until an index holds them.",
                    "dtdurations",
                    (Query(f"time() - max({P}_index_created_timestamp_seconds > 0)", "age"),),
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Items",
                    "In the index, in the catalogue, in the popular table.",
                    "short",
                    (
                        Query(f"max({P}_index_items)", "index"),
                        Query(f"max({P}_catalogue_items)", "catalogue"),
                        Query(f"max({P}_popular_items)", "popular"),
                    ),
                    width=6,
                ),
                Panel(
                    "Catalogue's revision",
                    "By process: a gap is a process that fell behind.",
                    "short",
                    (Query(f"max by (instance) ({P}_catalogue_revision)", "{{instance}}"),),
                    width=6,
                ),
                Panel(
                    "Releases",
                    "Taken into service, and those that could not be opened.",
                    "ops",
                    (
                        rate(f"{P}_release_swaps_total"),
                        rate(f"{P}_release_refusals_total", "cause", says="refused:", rare=True),
                    ),
                    width=6,
                ),
                Panel(
                    "Refreshes that failed",
                    "In the background; what was read before is served on.",
                    "ops",
                    (rate(f"{P}_refresh_failures_total", "what", rare=True),),
                ),
                pools("recommender"),
            ),
        ),
    ),
)
