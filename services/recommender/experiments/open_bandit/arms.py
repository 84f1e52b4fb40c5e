"""Both logs as an experiment of two arms: the rows of our tables, made by arithmetic alone.

Each row of a log is a unit of its own. The sample has no user ids; its four hashed user features are no substitute:
they make about 240 groups of people, and 213 of those occur in both logs of campaign "all", so as units nearly all
would have met both variants and would be left out. The price: who came twice counts as two, and intervals come out a
little too narrow; the hypothesis of the imported experiment says so. A slate is the one slot that a row logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.recommender.domain import Rung
from services.recommender.experiments.definitions import Experiment, Status, Variant
from services.recommender.experiments.open_bandit.log import BanditLog, Campaign, Policy
from services.recommender.experiments.registered import Plan, RegisteredExperiment

DAY_US = 86_400_000_000
_HYPOTHESIS = (
    "Bernoulli Thompson sampling is clicked more often than random choice. Imported from Open Bandit's sample (CC BY "
    "4.0, ZOZO, Inc.); each impression is a unit of its own, as the log names no users, so intervals are a little too "
    "narrow. Latencies are not in the log."
)


def key_of(campaign: Campaign) -> str:
    return f"open-bandit-{campaign}"


def item_id(campaign: Campaign, item: int) -> str:
    """Items are numbered anew in each campaign."""
    return f"obd-{campaign}-{item}"


def unit_of(campaign: Campaign, policy: Policy, row: int) -> str:
    """A visitor's user_key."""
    return f"v:obd-{campaign}-{policy}-{row}"


def registered(campaign: Campaign, logs: dict[Policy, BanditLog]) -> RegisteredExperiment:
    """Stopped, from the first to the last row. The control is the random policy."""
    begin = min(int(log.at_us.min()) for log in logs.values())
    end = max(int(log.at_us.max()) for log in logs.values())
    total = sum(len(log.click) for log in logs.values())
    return RegisteredExperiment(
        definition=Experiment(
            key=key_of(campaign),
            variants=tuple(Variant(policy, len(log.click) / total) for policy, log in logs.items()),
            status=Status.STOPPED,
            unit="visitor",
        ),
        owner="open-bandit import",
        hypothesis=_HYPOTHESIS,
        plan=Plan(primary="ctr"),
        time_zone="Asia/Tokyo",
        currency="JPY",
        created_at_us=begin,
        updated_at_us=end,
        started_at_us=begin,
        stopped_at_us=end,
    )


def rows_of(
    campaign: Campaign, policy: Policy, log: BanditLog, item_index: list[int], impression: int, click: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]:
    """`(exposure, slate, events)` of each row. `item_index` [items] of the campaign's items; `impression`, `click`: the
    codes of those actions."""
    columns = (log.item.tolist(), log.place.tolist(), log.click.tolist(), log.at_us.tolist())
    for row, (item, place, clicked, at_us) in enumerate(zip(*columns, strict=True)):
        unit, slate = unit_of(campaign, policy, row), f"obd-{campaign}-{policy}-{row}"
        day = at_us // DAY_US
        event = {
            "event_id": f"{slate}-impression",
            "occurred_day": day,
            "user_key": unit,
            "item_index": None,
            "action": impression,
            "event_value": None,
            "occurred_at_us": at_us,
            "received_at_us": at_us,
            "session_id": None,
            "recommendation_id": slate,
            "position": place,
            "impression": [item_id(campaign, item)],
            "properties": None,
        }
        click_event = {
            **event, "event_id": f"{slate}-click", "item_index": item_index[item], "action": click, "impression": None,
        }  # fmt: skip
        yield (
            _exposure(campaign, policy, unit, at_us),
            _slate(campaign, policy, unit, slate, at_us),
            [event, click_event] if clicked else [event],
        )


def _exposure(campaign: Campaign, policy: Policy, unit: str, at_us: int) -> dict[str, Any]:
    return {
        "experiment": key_of(campaign),
        "phase": 0,
        "unit": unit,
        "variant": str(policy),
        "first_at_us": at_us,
        "first_day": at_us // DAY_US,
        "segment": "",
        "simulated": False,
    }


def _slate(campaign: Campaign, policy: Policy, unit: str, slate: str, at_us: int) -> dict[str, Any]:
    """`took_us` None: the log has no latencies."""
    return {
        "experiment": key_of(campaign),
        "recommendation_id": slate,
        "phase": 0,
        "variant": str(policy),
        "unit": unit,
        "served_at_us": at_us,
        "served_day": at_us // DAY_US,
        "took_us": None,
        "items": 1,
        "rung": str(Rung.MODEL if policy is Policy.BTS else Rung.RETRIEVAL),
        "degraded": False,
        "failed": False,
        "ild": None,
        "novelty": None,
    }
