"""Queries that have one form for many metrics."""

from __future__ import annotations

from infra.grafana.panels import Panel, Query

RATE = "$__rate_interval"


def quantiles(metric: str, matchers: str = "") -> tuple[Query, ...]:
    """p50, p90 and p99 of a histogram."""
    return tuple(
        Query(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{matchers}[{RATE}])))", name)
        for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    )


def rate(metric: str, *by: str, matchers: str = "", says: str = "", rare: bool = False) -> Query:
    """A counter a second, by some of its labels. `says`: goes before their values in the legend. `rare`: a series is
    there from its first count on, and healthy processes count none, so 0 is shown until then and not "No data"."""
    if not by:
        return Query(f"sum(rate({metric}{matchers}[{RATE}]))", metric.removeprefix("silkrec_"))
    legend = " ".join([*([says] if says else []), *(f"{{{{{label}}}}}" for label in by)])
    expr = f"sum by ({', '.join(by)}) (rate({metric}{matchers}[{RATE}]))"
    return Query(or_none(expr, by[0]) if rare else expr, legend)


def or_none(expr: str, label: str) -> str:
    """A 0 whose `label` is `none` where there is no series."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


def pools(service: str) -> Panel:
    return Panel(
        f"Pools of {service}",
        "Connections in use over those there may be; at 1 callers wait.",
        "percentunit",
        (
            Query(f"max by (pool) (silkrec_{service}_pool_in_use / silkrec_{service}_pool_limit)", "{{pool}}"),
            Query(f"sum by (pool) (silkrec_{service}_pool_waiting)", "waiting for {{pool}}"),
            Query(
                f"sum by (pool) (rate(silkrec_{service}_pool_wait_seconds_total[{RATE}]))", "waits for {{pool}}, s/s"
            ),
        ),
        line=0.9,
    )


def process(service: str) -> tuple[Panel, ...]:
    """What any process uses."""
    return (
        Panel(
            f"CPU of {service}",
            "Cores.",
            "short",
            (Query(f"sum by (instance) (rate(silkrec_{service}_cpu_seconds_total[{RATE}]))", "{{instance}}"),),
        ),
        Panel(
            f"Memory of {service}",
            "Resident.",
            "bytes",
            (Query(f"sum by (instance) (silkrec_{service}_resident_memory_bytes)", "{{instance}}"),),
        ),
        Panel(
            f"Event loop of {service}",
            "How late it runs what is due: the queue in front of everything.",
            "s",
            quantiles(f"silkrec_{service}_event_loop_delay_seconds"),
        ),
    )
