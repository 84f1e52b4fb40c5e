"""The active model and the one before it: a request that was planned on a release may finish on it."""

from __future__ import annotations

import threading
from collections.abc import Callable

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

    def restore(self, version: str) -> bool:
        """Makes the model before the active one again, when that is `version`; False when it is not here."""
        with self._lock:
            previous = self._previous
            if previous is None or previous.version != version:
                return False
            self._previous, self._active = self._active, previous
            self._drop_at = self._clock() + self._keep_s
            return True

    def resolve(self, version: str) -> ServingModel:
        """Empty: the active one. Raises InferenceUnavailable before the first model, NotFound for a version that is
        neither active nor the one before."""
        self.expire()
        with self._lock:
            active, previous = self._active, self._previous
        if active is None:
            raise InferenceUnavailable("no model is loaded yet; train and promote one", retry_after_s=1.0)
        if version in ("", active.version):
            return active
        if previous is not None and version == previous.version:
            return previous
        raise NotFound(f"model version {version} is not loaded; loaded: {', '.join(self.versions())}")

    def models(self) -> tuple[ServingModel, ...]:
        """Loaded models, the active one first."""
        return tuple(model for model in (self._active, self._previous) if model is not None)

    def versions(self) -> tuple[str, ...]:
        return tuple(model.version for model in self.models())

    def expire(self) -> bool:
        """Forgets the previous model when its time is over; True when it did."""
        with self._lock:
            if self._previous is None or self._clock() < self._drop_at:
                return False
            self._previous = None
            return True
