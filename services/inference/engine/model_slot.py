"""The active model, the one before it (a request that was planned on a release may finish on it), and those that
variants of experiments serve beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from services.inference.engine.runner import ServingModel
from shared.errors import InferenceUnavailable, NotFound

KEEP_PREVIOUS_S = 60.0


class ModelSlot:
    """Thread-safe. Dropping is forgetting: tickets hold their model, so its memory goes with the last of them."""

    def __init__(self, clock: Callable[[], float], keep_previous_s: float = KEEP_PREVIOUS_S) -> None:
        self._clock = clock
        self._keep_s = keep_previous_s
        self._lock = threading.Lock()
        self._active: ServingModel | None = None
        self._previous: ServingModel | None = None
        self._beside: tuple[ServingModel, ...] = ()
        self._drop_at = 0.0

    @property
    def active(self) -> ServingModel | None:
        return self._active

    def install(self, model: ServingModel) -> None:
        """The switch: requests from now on get this model."""
        with self._lock:
            if self._active is not None and self._active.version != model.version:
                self._previous = self._active
                self._drop_at = self._clock() + self._keep_s
            self._active = model
            self._beside = tuple(one for one in self._beside if one.version != model.version)

    def restore(self, version: str) -> bool:
        """Makes a model that is still here the active one: the one before, or one beside. False when it is not here."""
        beside = next((one for one in self._beside if one.version == version), None)
        if beside is not None:
            self.install(beside)
            return True
        with self._lock:
            previous = self._previous
            if previous is None or previous.version != version:
                return False
            self._previous, self._active = self._active, previous
            self._drop_at = self._clock() + self._keep_s
            return True

    def resolve(self, version: str) -> ServingModel:
        """Empty: the active one. Raises InferenceUnavailable before the first model, NotFound for a version that is
        neither active, nor the one before, nor beside."""
        self.expire()
        with self._lock:
            active, others = self._active, (self._previous, *self._beside)
        for model in others:
            if model is not None and version == model.version:
                return model
        if active is None:
            raise InferenceUnavailable("no model is loaded yet; train and promote one", retry_after_s=1.0)
        if version in ("", active.version):
            return active
        raise NotFound(f"model version {version} is not loaded; loaded: {', '.join(self.versions())}")

    def put_beside(self, model: ServingModel) -> None:
        with self._lock:
            self._beside = (*(one for one in self._beside if one.version != model.version), model)

    def keep_beside(self, version: str) -> bool:
        """Whether the model is here to stay: active, or beside, where the one before is put for it."""
        with self._lock:
            previous = self._previous
            if previous is not None and previous.version == version:
                self._previous, self._beside = None, (*self._beside, previous)
            return any(one is not None and one.version == version for one in (self._active, *self._beside))

    def drop_beside(self, keep: Collection[str]) -> bool:
        """Forgets those that are not to be kept; True when there was one."""
        with self._lock:
            kept = tuple(one for one in self._beside if one.version in keep)
            dropped, self._beside = len(kept) < len(self._beside), kept
            return dropped

    def serving(self) -> tuple[ServingModel, ...]:
        """Those that new requests may ask for: the active one first, then those beside."""
        return tuple(model for model in (self._active, *self._beside) if model is not None)

    def models(self) -> tuple[ServingModel, ...]:
        """Loaded models, the active one first."""
        return tuple(model for model in (self._active, self._previous, *self._beside) if model is not None)

    def versions(self) -> tuple[str, ...]:
        return tuple(model.version for model in self.models())

    def expire(self) -> bool:
        """Forgets the previous model when its time is over; True when it did."""
        with self._lock:
            if self._previous is None or self._clock() < self._drop_at:
                return False
            self._previous = None
            return True
