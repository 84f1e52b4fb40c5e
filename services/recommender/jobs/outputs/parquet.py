"""Slates as Parquet: parts staged by chunk and token, and a manifest that names the parts of a finished job.

    <output_dir>/<job_id>/parts/chunk-00000012-3.parquet      staged by the lease with token 3
    <output_dir>/<job_id>/manifest.json                       written once, when every chunk is done

A reader opens the manifest and what it names; without a manifest there is nothing to read. Parts of leases that were
lost are never named, and go when the job is published.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from services.recommender.jobs.outputs.made import Made
from shared.errors import ArtifactError
from shared.identity import split_user_key
from shared.storage.artifacts import sha256_of, sync

FORMAT = 1
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("visitor_id", pa.string()),
        ("scene", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("item_index", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("release", pa.string()),
        ("model_version", pa.string()),
        ("index_version", pa.string()),
        ("made_at", pa.timestamp("us", tz="UTC")),
    ]
)


def stage(folder: Path, chunk: int, token: int, made: Made) -> Mapping[str, Any]:
    """Writes the part under its final name, synced; what it is: {file, rows, bytes, sha256}. Raises OSError."""
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    path = parts / f"chunk-{chunk:08d}-{token}.parquet"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        pq.write_table(_table(made), draft, compression="zstd")
        sync(draft)
        digest, size = sha256_of(draft), draft.stat().st_size
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(parts)
    return {"file": f"parts/{path.name}", "rows": len(made.slates), "bytes": size, "sha256": digest}


def publish(folder: Path, job: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The manifest, by one rename, once every part was found to be what its chunk committed. Doing it again writes the
    same. Raises ArtifactError, OSError."""
    for part in parts:
        path = folder / part["file"]
        if not path.is_file() or path.stat().st_size != part["bytes"] or sha256_of(path) != part["sha256"]:
            raise ArtifactError(f"{path} is not what its chunk committed; is jobs.output_dir shared by all workers?")
    content = {"format": FORMAT, **job, "rows": sum(part["rows"] for part in parts), "parts": list(parts)}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{MANIFEST}.{secrets.token_hex(4)}"
    draft.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sync(draft)
    draft.replace(folder / MANIFEST)
    sync(folder)
    _sweep(folder, {part["file"] for part in parts})
    return {"manifest": str(folder / MANIFEST), "rows": content["rows"], "parts": len(parts)}


def read(folder: Path) -> pa.Table:
    """What a job published, whole. Raises ArtifactError while there is no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: the job is not published")
    parts = orjson.loads(path.read_bytes())["parts"]
    tables = [pq.read_table(folder / part["file"], schema=SCHEMA) for part in parts]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _table(made: Made) -> pa.Table:
    keys = [split_user_key(slate.user_key) for slate in made.slates]
    count = len(keys)
    release = made.release
    columns = [
        [user for user, _ in keys],
        [visitor for _, visitor in keys],
        [made.scene] * count,
        [list(slate.item_ids) for slate in made.slates],
        [slate.item_index for slate in made.slates],
        [slate.scores for slate in made.slates],
        [made.release_name] * count,
        [None if release is None else release.model_version] * count,
        [None if release is None else release.index_version] * count,
        [made.made_at_us] * count,
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _sweep(folder: Path, named: set[str]) -> None:
    """Parts of leases that were lost. One that a worker without a lease still writes is left for the purge."""
    for path in (folder / "parts").glob("*.parquet"):
        if f"parts/{path.name}" not in named:
            path.unlink(missing_ok=True)
