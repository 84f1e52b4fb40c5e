"""The engine: what waits, what runs, what is kept."""

from infra.grafana.boards.common import RATE, quantiles, rate
from infra.grafana.panels import Board, Panel, Query, Row

P = "silkrec_inference"
HITS, BUILT = f"{P}_cache_hit_rows_total", f"{P}_cache_built_rows_total"

BOARD = Board(
    "engine",
    "inference engine",
    (
        Row(
            "Requests",
            (
                Panel(
                    "Duration",
                    "From the door to the answer.",
                    "s",
                    quantiles(f"{P}_request_duration_seconds"),
                    line=0.068,
                ),
                Panel(
                    "Wait for the device",
                    "In the scheduler's queue.",
                    "s",
                    quantiles(f"{P}_queue_duration_seconds"),
                    line=0.02,
                ),
                Panel("Batch", "On the device, copies included.", "s", quantiles(f"{P}_batch_duration_seconds")),
                Panel(
                    "Outcomes",
                    "scored and trimmed are in time.",
                    "reqps",
                    (rate(f"{P}_requests_total", "outcome"),),
                    stacked=True,
                ),
                Panel(
                    "Waiting",
                    "Requests in the queue now.",
                    "short",
                    (Query(f"sum by (instance) ({P}_queue_requests)", "{{instance}}"),),
                ),
                Panel(
                    "Refused at the door",
                    "By door and code.",
                    "reqps",
                    (rate(f"{P}_refused_requests_total", "door", "code", rare=True),),
                ),
            ),
        ),
        Row(
            "Batches",
            (
                Panel(
                    "Requests a batch",
                    "Mean, and the cap, which falls when memory runs out.",
                    "short",
                    (
                        Query(
                            f"sum(rate({P}_inferences_total[{RATE}])) / sum(rate({P}_executions_total[{RATE}]))", "mean"
                        ),
                        Query(f"min({P}_max_batch_requests)", "cap"),
                    ),
                ),
                Panel(
                    "Rows a batch",
                    "History rows computed and candidates: its tokens.",
                    "short",
                    quantiles(f"{P}_batch_rows"),
                ),
                Panel(
                    "Left of the deadline",
                    "When a request's batch began.",
                    "s",
                    quantiles(f"{P}_dispatch_slack_seconds"),
                ),
                Panel(
                    "Cost model",
                    "Median relative error of predicted times; above 0.3 for long it is wrong.",
                    "percentunit",
                    (Query(f"max by (instance) ({P}_prediction_error_ratio)", "{{instance}}"),),
                    line=0.3,
                ),
                Panel("Actual over expected", "Time of a batch.", "short", quantiles(f"{P}_batch_predicted_ratio")),
                Panel(
                    "Trouble",
                    "Late, repeated and split batches, contradictions in the cache.",
                    "ops",
                    (
                        rate(f"{P}_late_batches_total"),
                        rate(f"{P}_batch_retries_total"),
                        rate(f"{P}_oom_splits_total"),
                        rate(f"{P}_cache_integrity_faults_total"),
                    ),
                ),
            ),
        ),
        Row(
            "Latent cache",
            (
                Panel(
                    "Found",
                    "Share of history rows that were cached.",
                    "percentunit",
                    (
                        Query(
                            f"sum(rate({HITS}[{RATE}])) / (sum(rate({HITS}[{RATE}])) + sum(rate({BUILT}[{RATE}])))",
                            "share",
                        ),
                    ),
                ),
                Panel(
                    "Pages",
                    "By tier and state.",
                    "short",
                    (Query(f"sum by (tier, state) ({P}_cache_pages)", "{{tier}} {{state}}"),),
                    stacked=True,
                ),
                Panel(
                    "Pushed out",
                    "Users a second, by tier; with no free pages the cache is too small.",
                    "ops",
                    (rate(f"{P}_cache_evictions_total", "tier"),),
                ),
            ),
        ),
        Row(
            "Model and memory",
            (
                Panel(
                    "Engine",
                    "1: its thread runs, a warm model serves.",
                    "short",
                    (Query(f"min({P}_engine_alive)", "alive"), Query(f"min({P}_model_loaded)", "model")),
                    kind="stat",
                ),
                Panel(
                    "Models",
                    "Taken into service, and refused.",
                    "ops",
                    (rate(f"{P}_model_swaps_total"), rate(f"{P}_model_refusals_total")),
                ),
                Panel(
                    "New items",
                    "By what became of them; no_room says that it is time to train.",
                    "ops",
                    (rate(f"{P}_upserted_items_total", "outcome"),),
                ),
                Panel(
                    "GPU",
                    "Time in which a kernel ran.",
                    "percentunit",
                    (Query(f"max by (instance) ({P}_gpu_utilisation_ratio)", "{{instance}}"),),
                    line=0.9,
                ),
                Panel(
                    "GPU memory",
                    "Of the whole card, and of it what torch's allocator holds and uses.",
                    "bytes",
                    (
                        Query(f"sum({P}_gpu_memory_used_bytes)", "used"),
                        Query(f"sum({P}_gpu_memory_total_bytes)", "card"),
                        Query(f"sum({P}_memory_reserved_bytes)", "reserved"),
                        Query(f"sum({P}_memory_active_bytes)", "active"),
                    ),
                ),
                Panel(
                    "Fragmentation",
                    "Reserved over active; an idle engine trims above 1.2.",
                    "short",
                    (Query(f"max by (instance) ({P}_memory_fragmentation_ratio)", "{{instance}}"),),
                    line=1.5,
                ),
            ),
        ),
    ),
)
