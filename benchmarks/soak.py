"""An hour of random users against the engine, compressed into minutes.

    python -m benchmarks.soak [--requests 72000] [--minutes 6] [--json FILE]

72,000 requests are an hour at 20 a second. The engine runs in this process (no door) with the demo's ranker, histories
of 200 rows at most and a latent cache for a tenth of the users, so that it evicts all the time. Eight callers at once;
a request is a random user's history after what may have happened to it: events appended, one edited or deleted in the
middle, the oldest dropped by the cap, everything forgotten. Two callers can have the same user. Models are swapped
meanwhile. Every `_EVERY`th answer is compared with an engine without a cache (`serving`, one request at a time).

measured: `rss_growth_mb`, from a tenth of the way to the end; `integrity_faults`, from `check_integrity` every thousand
requests and the engine's own looks; `wrong_scores`, answers further than 1e-4 from the reference; `failed`, requests
that raised anything; `hit_share` of history rows. Asked: the middle three 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.report import machine, save, table
from services.inference.engine.engine import Engine, EngineOptions
from services.inference.engine.request import InferAnswer, InferRequest, Part
from services.inference.engine.runner import ServingModel
from services.inference.engine.tiers import CacheOptions
from services.inference.model import checkpoint
from services.inference.model.config import ModelConfig
from shared.contracts.history import History, pack
from shared.contracts.manifest import ModelManifest
from shared.errors import SilkrecError
from shared.storage.artifacts import ArtifactStore
from tests.inference_models import publish

VOCABULARY, USERS, CANDIDATES, ROWS, CAP = 20_000, 400, 32, (1, 190), 200
MODEL = ModelConfig(vocabulary=VOCABULARY, actions=(1, 2, 3, 4, 5), d_model=64, n_layers=2, max_history=CAP)
CALLERS, TOLERANCE = 8, 1e-4
_EVERY, _CHECK, _SWAP = 10, 1000, 3000
_CACHE_BYTES = 5 << 20  # 160 pages of 64 rows: about 50 users
_DEADLINE_US = 10_000_000


@dataclass
class Soak:
    """`asked` counts requests; a version's reference is the same model without a cache."""

    engine: Engine
    folders: list[Path]
    references: dict[str, ServingModel]
    random: random.Random
    numbers: np.random.Generator
    users: dict[int, History] = field(default_factory=dict)
    asked: int = 0
    compared: int = 0
    wrong: int = 0
    worst: float = 0.0
    failed: int = 0
    faults: int = 0
    swaps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    async def run(self, requests: int, seconds: float) -> None:
        begin = time.monotonic()
        every = max(requests // 20, 1)
        marks = iter(range(every, requests + every, every))
        mark = next(marks)
        while self.asked < requests and time.monotonic() - begin < seconds:
            await asyncio.gather(*(self._caller(min(mark, requests)) for _ in range(CALLERS)))
            self.faults += len(await self.engine.check_integrity())
            self._note(time.monotonic() - begin)
            mark = next(marks, requests)

    async def _caller(self, until: int) -> None:
        while self.asked < until:
            self.asked += 1
            number = self.asked
            if number % _SWAP == 0:
                self.swaps += 1
                await asyncio.to_thread(self.engine.load, self.folders[self.swaps % len(self.folders)])
            if number % _CHECK == 0:
                self.faults += len(await self.engine.check_integrity())
            request = await self._next()
            try:
                answer = await self.engine.infer(request)
            except SilkrecError:
                self.failed += 1
                continue
            if number % _EVERY == 0:
                self._compare(request, answer)

    async def _next(self) -> InferRequest:
        user = min(int(self.random.expovariate(4.0 / USERS)), USERS - 1)  # some come often, some hardly ever
        history = self.users.get(user)
        history = self._events(self.random.randint(*ROWS), 0) if history is None else self._changed(history)
        if self.random.random() < 0.01:
            await self.engine.forget(f"u:{user}")
            history = self._events(self.random.randint(*ROWS), 0)
        self.users[user] = history
        ranks = self.random.random() < 0.8
        candidate = self.numbers.integers(-1, VOCABULARY + 5, CANDIDATES, dtype=np.int32) if ranks else None
        return InferRequest(
            history["item"].copy(),
            history["action"].copy(),
            history["time"].copy(),
            candidate,
            int(history["time"][-1]) + 60,
            _DEADLINE_US,
            f"u:{user}",
        )

    def _changed(self, history: History) -> History:
        """Appended in most cases, edited or cut in some; older rows than the cap stay, as a caller may send them."""
        dice = self.random.random()
        place = self.random.randrange(len(history))
        if dice < 0.05:
            history = history.copy()
            history["item"][place] = self.random.randrange(VOCABULARY)
        elif dice < 0.10 and len(history) > 1:
            history = np.delete(history, place)
        elif dice < 0.13:
            history = history[: place + 1]
        elif dice < 0.75:
            history = np.concatenate((history, self._events(self.random.randint(1, 3), int(history["time"][-1]))))
        return history[-CAP - 20 :]

    def _events(self, rows: int, after_s: int) -> History:
        times = after_s + np.cumsum(self.numbers.integers(1, 50_000, rows))
        return pack(self.numbers.integers(0, VOCABULARY, rows), self.numbers.integers(1, 6, rows), times)

    def _compare(self, request: InferRequest, answer: InferAnswer) -> None:
        reference = self.references[answer.model_version]
        parts = [Part(request.newest(CAP + 1), 0 if request.candidate is None else len(request.candidate))]
        expected = reference.run(parts)[0]
        if isinstance(expected, SilkrecError):
            raise expected
        pairs = ((answer.scores, expected.scores), (answer.user_vector, expected.user_vector))
        off = max(float(np.abs(mine - true).max()) for mine, true in pairs if mine is not None and true is not None)
        self.compared += 1
        self.worst = max(self.worst, off)
        self.wrong += off > TOLERANCE or (answer.scored is not None and not answer.scored.all())

    def _note(self, seconds: float) -> None:
        gc.collect()
        stats, cache = self.engine.cache_stats(), self.engine.counters.cache
        hits = cache.device_hit_rows + cache.host_hit_rows
        row = {
            "requests": self.asked,
            "seconds": round(seconds, 1),
            "rss_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            "users_cached": stats.users,
            "hit_share": round(hits / max(hits + cache.built_rows, 1), 3),
            "evictions": cache.evictions,
            "stale": cache.stale_rejects,
            "swaps": self.swaps,
            "compared": self.compared,
            "wrong": self.wrong,
            "worst": f"{self.worst:.1e}",
            "faults": self.faults + self.engine.counters.integrity_faults,
        }
        self.rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    about = machine()
    print(f"machine: {about}", flush=True)
    with tempfile.TemporaryDirectory(prefix="silkrec-bench-") as name:
        store = ArtifactStore(Path(name))
        for number in (1, 2):
            publish(store, f"m-{number}", MODEL, seed=number)
        folders = [store.open_folder(ModelManifest, f"m-{number}")[0] for number in (1, 2)]
        cache = CacheOptions(device_bytes=_CACHE_BYTES)
        engine = Engine(EngineOptions(device="cpu", threads=1, max_rows=CAP, keep_previous_s=5.0, cache=cache))
        engine.start()
        try:
            engine.load(folders[0])
            references = {folder.name: _reference(folder) for folder in folders}
            soak = Soak(engine, folders, references, random.Random(1), np.random.default_rng(1))
            asyncio.run(soak.run(options.requests, options.minutes * 60))
        finally:
            engine.stop()
    table("soak", soak.rows)
    return _result(soak, about)


def _reference(folder: Path) -> ServingModel:
    loaded = checkpoint.load(folder)
    off = CacheOptions(enabled=False, device_bytes=_CACHE_BYTES)
    return ServingModel(loaded, device="cpu", precision="fp32", max_rows=CAP, cache=off)


def _result(soak: Soak, about: dict[str, Any]) -> dict[str, Any]:
    first = soak.rows[min(2, len(soak.rows) - 1)]
    measured = {
        "requests": soak.asked,
        "rss_growth_mb": round(soak.rows[-1]["rss_mb"] - first["rss_mb"], 1),
        "integrity_faults": soak.rows[-1]["faults"],
        "wrong_scores": soak.wrong,
        "compared": soak.compared,
        "worst_difference": soak.worst,
        "failed": soak.failed,
        "evictions": soak.rows[-1]["evictions"],
        "hit_share": soak.rows[-1]["hit_share"],
    }
    workload = {"users": USERS, "candidates": CANDIDATES, "cap_rows": CAP, "callers": CALLERS, "tolerance": TOLERANCE}
    return {"machine": about, "workload": workload, "rows": soak.rows, "measured": measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=72_000)
    parser.add_argument("--minutes", type=float, default=6.0, help="it ends then at the latest")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = run(options)
    print(json.dumps(result["measured"], indent=2))
    save(result, options.json)


if __name__ == "__main__":
    main()
