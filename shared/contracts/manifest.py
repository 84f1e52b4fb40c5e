"""`manifest.json` of models and indexes, and the deployment row that names the active release."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FORMAT = 1


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # N-1 must read what N wrote


class ManifestAction(Frozen):
    name: str
    code: int


class Manifest(Frozen):
    """Common to both kinds. `files` maps a file name to its sha256 in hex; every file of the folder is listed."""

    format: int = MANIFEST_FORMAT
    kind: Literal["model", "index"]
    version: str = Field(description="also the folder's name")
    created_at: datetime
    catalogue_version: int = Field(description="highest item revision that was known when it was made")
    files: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)


class ModelManifest(Manifest):
    """`architecture` is ModelConfig as a dict; `actions` the trained heads, in the order of the score columns."""

    kind: Literal["model"] = "model"
    architecture: dict[str, Any]
    actions: tuple[ManifestAction, ...]
    vocabulary: int = Field(description="item_index below this has an embedding row of its own")
    vector_dim: int
    feature_schema: str = Field(description="hash of the declared item fields that became content tokens")


class Space(Frozen):
    """One FAISS index of a folder. `recall_at_100` is measured against exact search at build time."""

    file: str
    dim: int
    count: int
    kind: str = Field(description="FAISS factory string, for example Flat or IVF1024,Flat")
    nprobe: int = 0
    recall_at_100: float = 1.0


class IndexManifest(Manifest):
    """`spaces` has `item` (item to item, cosine) always, and `user` (by user vector, inner product) when it was built
    from a model."""

    kind: Literal["index"] = "index"
    model_version: str | None = None
    spaces: dict[Literal["user", "item"], Space]


class Release(Frozen):
    """The unit that is promoted, varied, rolled back and logged. No model: the suite serves retrieval scores."""

    release: str
    model_version: str | None
    index_version: str | None


class Deployment(Frozen):
    """The newest row wins everywhere within 5 s. `settings` are dotted setting names and values shipped with it."""

    version: int
    release: Release
    settings: dict[str, Any] = Field(default_factory=dict)
    actor: str = ""
    note: str = ""
    created_at_us: int = 0
