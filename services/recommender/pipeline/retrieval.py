"""All sources at once, the encoder among them; whoever is not back in time is left out and named."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.recommender.domain import CandidateBatch
from services.recommender.pipeline.context import Context
from services.recommender.pipeline.protocols import Encoder, Source
from services.recommender.pipeline.waiting import Stragglers
from services.recommender.ranking.fusion import fuse
from services.recommender.retrieval.hits import Hits, no_hits

T = TypeVar("T")
DROPPED = "dropped"
OTHERS = "other_sources"


@dataclass(frozen=True, slots=True)
class Retrieval:
    encoder: Encoder
    stragglers: Stragglers

    async def run(self, context: Context, sources: Sequence[Source], k: int, timeout_s: float) -> CandidateBatch:
        """Candidates in fused order, each once; bit s of `source_bits` is `sources[s]`."""
        hits = await self._gather(context, sources, k, timeout_s)
        with context.report.timed("merge"):
            return merge(hits, sources)

    async def _gather(self, context: Context, sources: Sequence[Source], k: int, timeout_s: float) -> list[Hits]:
        encoding = None
        asked = [_is_asked(context, source) for source in sources]
        if any(
            source.needs_vector for source, wanted in zip(sources, asked, strict=True) if wanted
        ) and self.encoder.possible(context):
            encoding = asyncio.ensure_future(self._encode(context, timeout_s))
        tasks: dict[int, asyncio.Task[Hits]] = {}
        for number, source in enumerate(sources):
            if not asked[number]:
                continue
            if not source.needs_vector:
                tasks[number] = asyncio.ensure_future(_ask(context, source, k))
            elif encoding is not None:
                tasks[number] = asyncio.ensure_future(_ask_after(encoding, context, source, k))
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=timeout_s)
            encoded = encoding is None or _settled(context, encoding, "encode", OTHERS) is not None
            return [
                self._hits(context, source, tasks.get(number), encoded=encoded) for number, source in enumerate(sources)
            ]
        finally:
            for task in (*tasks.values(), encoding):
                if task is not None:
                    self.stragglers.stop(task)

    async def _encode(self, context: Context, timeout_s: float) -> bool:
        with context.report.timed("encode"):
            context.user_vector = await self.encoder.encode(context, timeout_s)
        return True

    def _hits(self, context: Context, source: Source, task: asyncio.Task[Hits] | None, *, encoded: bool) -> Hits:
        if task is None or (source.needs_vector and not encoded):
            return no_hits()  # the encoder was named already
        return _settled(context, task, f"source.{source.name}", DROPPED) or no_hits()


def _is_asked(context: Context, source: Source) -> bool:
    """What a variant left out proposes nothing; its bit stays its own. A caller's promotions are not a variant's."""
    wanted = context.query.sources
    return wanted is None or source.protected or source.name in wanted


def merge(hits: Sequence[Hits], sources: Sequence[Source]) -> CandidateBatch:
    return CandidateBatch(*fuse([found.item_index for found in hits], [source.weight for source in sources]))


async def _ask(context: Context, source: Source, k: int) -> Hits:
    with context.report.timed(f"source.{source.name}"):
        return await source.retrieve(context, k)


async def _ask_after(encoding: asyncio.Task[bool], context: Context, source: Source, k: int) -> Hits:
    await asyncio.wait((encoding,))
    return await _ask(context, source, k) if context.user_vector is not None else no_hits()


def _settled(context: Context, task: asyncio.Task[T], stage: str, fallback: str) -> T | None:
    """The result; None after naming why there is none."""
    if not task.done():
        context.report.failed(stage, TimeoutError(), fallback)
        return None
    if task.cancelled():
        context.report.gave_up(stage, "cancelled", fallback)
        return None
    error = task.exception()
    if error is not None:
        context.report.failed(stage, error, fallback)
        return None
    return task.result()
