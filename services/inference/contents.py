"""What the engine is told of items that came after training: content to the active model's tokens, and kept, so that
the next model learns of them too.

An engine keeps content as rows of one model. So whoever switches models does it inside `switching()`: nothing is given
meanwhile (tokens of one model would be another's noise), and what was given before is given to the new model at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence

import numpy as np
import orjson

from services.inference.engine.engine import Engine
from services.inference.engine.request import ItemContent
from services.inference.engine.runner import ServingModel
from services.inference.training.content import Tokeniser, feature_types, schema_hash
from services.inference.training.publish import TOKENS
from shared.contracts.inference import NewItem, Upserted
from shared.contracts.manifest import ModelManifest
from shared.errors import ArtifactError, InferenceUnavailable, SilkrecError
from shared.observability.logging import get_logger
from shared.schema import Schema
from shared.storage.artifacts import ArtifactStore

CHUNK = 16
"""Items given between two batches. An item costs the device's thread 60 µs (one busy core, d 64): 1 ms in all, where
500 at once would hold every request up for 29 ms."""
KEPT_ITEMS = 16_384
"""As many as a model has rows for."""
KEPT_BYTES = 64 << 20
SWITCH_WAIT_S = 2.0
"""How long an upsert waits for a model that is being loaded."""
_log = get_logger(__name__)


class ItemContents:
    """Lives on one event loop. `schema`: as it is declared now, for model folders that do not keep it."""

    def __init__(
        self,
        engine: Engine,
        store: ArtifactStore,
        schema: Schema,
        *,
        switch_wait_s: float = SWITCH_WAIT_S,
        kept_items: int = KEPT_ITEMS,
    ) -> None:
        self._engine = engine
        self._store = store
        self._schema = schema
        self._switch_wait_s = switch_wait_s
        self._instance = secrets.token_hex(8)
        self._switch = asyncio.Lock()
        self._tokenisers: dict[str, Tokeniser] = {}
        self._kept = _Kept(kept_items)

    @contextlib.asynccontextmanager
    async def switching(self) -> AsyncIterator[None]:
        """Around whatever changes the loaded models. When it raises, the old ones are still there and know all."""
        async with self._switch:
            yield
            await self._give_kept()

    async def upsert(self, items: Sequence[NewItem]) -> Upserted:
        """Raises InferenceUnavailable without a model and while one is being loaded, ArtifactError for a model folder
        that is damaged; then nothing was given."""
        try:
            async with asyncio.timeout(self._switch_wait_s):
                await self._switch.acquire()
        except TimeoutError:
            raise InferenceUnavailable("a model is being loaded; send the items again", retry_after_s=1.0) from None
        try:
            model = self._engine.slot.resolve("")
            tokeniser = await self._tokeniser_of(model)
            self._kept.add(item for item in items if item.item_index >= model.vocabulary)
            told = await self._give(items, model, tokeniser)
            await self._give_beside(items)
            return told
        finally:
            self._switch.release()

    async def _give(self, items: Sequence[NewItem], model: ServingModel, tokeniser: Tokeniser) -> Upserted:
        missing = [item for item, has in zip(items, _have_rows(model, items), strict=True) if not has]
        contents = [ItemContent(item.item_index, tokeniser.encode(item)) for item in missing]
        telling = [content for content in contents if content.tokens]
        taken = 0
        for start in range(0, len(telling), CHUNK):
            taken += await self._engine.upsert_items(telling[start : start + CHUNK], model)
        return Upserted(
            model_version=model.version,
            vocabulary=model.vocabulary,
            instance=self._instance,
            taken=taken,
            known=len(items) - len(missing),
            no_room=len(telling) - taken,
            without_tokens=len(missing) - len(telling),
            ignored_properties=tuple(sorted({name for item in missing for name in tokeniser.unfit(item)})),
        )

    async def _give_kept(self) -> None:
        """To every model that lacks it."""
        if self._kept:
            items = list(self._kept.items())
            for model in self._engine.slot.serving():
                await self._give_quietly(items, model)

    async def _give_beside(self, items: Sequence[NewItem]) -> None:
        for model in self._engine.slot.serving()[1:]:
            await self._give_quietly([item for item in items if item.item_index >= model.vocabulary], model)

    async def _give_quietly(self, items: Sequence[NewItem], model: ServingModel) -> None:
        """A model that serves without the content of new items is better than none, so nothing is raised."""
        try:
            given = await self._give(items, model, await self._tokeniser_of(model))
        except SilkrecError as error:
            _log.warning("new items' content did not reach a model", model_version=model.version, detail=error.detail)
            return
        if given.taken:
            _log.info("new items' content is given to a model", model_version=model.version, items=given.taken)

    async def _tokeniser_of(self, model: ServingModel) -> Tokeniser:
        if model.version not in self._tokenisers:
            found = await asyncio.to_thread(self._read, model)
            loaded = self._engine.slot.versions()
            self._tokenisers = {name: one for name, one in self._tokenisers.items() if name in loaded}
            self._tokenisers[model.version] = found
        return self._tokenisers[model.version]

    def _read(self, model: ServingModel) -> Tokeniser:
        """The folder's checksums were compared when the model was loaded. Raises ArtifactError."""
        path = self._store.folder(ModelManifest, model.version) / TOKENS
        width = model.config.content_tokens
        declared = {}
        try:
            if self._store.manifest(ModelManifest, model.version).feature_schema == schema_hash(self._schema):
                declared = feature_types(self._schema)
            found = Tokeniser.loads(path.read_text("utf-8"), width=width, features=declared)
        except FileNotFoundError:
            return Tokeniser((), {}, {}, 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}; promote another release") from error
        if len(found.tokens) >= model.config.content_vocabulary and width:
            raise ArtifactError(f"{path} names more tokens than the model has; promote another release")
        return found if width else Tokeniser((), {}, {}, 0)


class _Kept:
    """Packed content by item_index, the newest that came: the present model keeps what it was given, the next one gets
    this. What was not sent for longest makes way beyond `most` items and `KEPT_BYTES`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._packed: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packed)

    def add(self, items: Iterable[NewItem]) -> None:
        for item in items:
            self._bytes -= len(self._packed.pop(item.item_index, b""))
            self._packed[item.item_index] = packed = _packed(item)
            self._bytes += len(packed)
        while len(self._packed) > self._most or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._packed.popitem(last=False)[1])

    def items(self) -> Iterable[NewItem]:
        return (_unpacked(item_index, packed) for item_index, packed in self._packed.items())


def _packed(item: NewItem) -> bytes:
    return orjson.dumps([item.title, item.categories, item.properties])


def _unpacked(item_index: int, packed: bytes) -> NewItem:
    title, categories, properties = orjson.loads(packed)
    return NewItem(item_index, title, tuple(categories), properties)


def _have_rows(model: ServingModel, items: Sequence[NewItem]) -> list[bool]:
    rows = model.items.rows_of(np.asarray([item.item_index for item in items], np.int64))
    return [bool(row != model.vocabulary) for row in rows]
