"""A draft of `silkrec.yaml` from what files hold, with what was guessed as comments, and the imports that fit it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.features.bulk.event_types import Found, count_types, declare, weights
from services.features.bulk.fields import FieldGuess, guess_fields
from services.features.bulk.guess import Guess, guess, looks_like_rating
from services.features.bulk.observe import MAX_ROWS, Observed, observe
from services.features.bulk.plan import Kind
from services.features.bulk.records import DEFAULT_SEPARATOR
from services.features.bulk.roles import snake
from services.features.bulk.sources import Format, open_source
from shared.errors import ValidationFailed
from shared.schema import DEFAULT_EVENT_TYPES, EventType, Schema

_NO_TYPE = {
    "purchase": ("price", "amount", "revenue", "quantity", "qty", "total"),
    "watch": ("watch_time", "play_time", "play_time_ms", "duration", "dwell_time"),
}
_KINDS: tuple[Kind, ...] = ("events", "items", "users")


@dataclass(frozen=True)
class Wanted:
    """`mapped`: columns the caller knows. `kind` None: guessed a file."""

    files: Sequence[Path]
    mapped: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | None = None
    max_rows: int = MAX_ROWS
    format: Format | None = None
    delimiter: str | None = None
    quotes: bool = True


@dataclass(frozen=True)
class FileDraft:
    """`command`: the import that fits the draft."""

    path: Path
    kind: Kind
    rows: int
    whole: bool
    columns: Mapping[str, str]
    command: str
    sections: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "file": str(self.path), "kind": self.kind, "rows": self.rows, "whole": self.whole,
            "columns": dict(self.columns), "command": self.command,
        }  # fmt: skip


@dataclass(frozen=True)
class Draft:
    text: str
    files: tuple[FileDraft, ...]


def make_draft(wanted: Wanted) -> Draft:
    """The text loads as settings. Raises ValidationFailed that says which option helps."""
    drafts = [_draft(path, wanted) for path in wanted.files]
    kinds = [each.kind for each in drafts]
    for kind in _KINDS:
        if kinds.count(kind) > 1:
            names = ", ".join(str(each.path) for each in drafts if each.kind == kind)
            raise ValidationFailed(f"{names}: both look like {kind}; give one file of a kind")
    ordered = sorted(drafts, key=lambda each: _KINDS.index(each.kind))
    parts = [_head(ordered), *(each.sections for each in ordered)]
    text = "\n".join(parts)
    content = yaml.safe_load(text)
    Schema.model_validate({name: content[name] for name in content or {}})
    return Draft(text, tuple(drafts))


def _draft(path: Path, wanted: Wanted) -> FileDraft:
    source = open_source(path, wanted.format, delimiter=wanted.delimiter, quotes=wanted.quotes)
    observed = observe(source, wanted.max_rows)
    if observed.rows == 0:
        raise ValidationFailed(f"{path}: there is no row behind the header")
    found = guess(path, observed, _of_this_file(wanted, observed), wanted.kind)
    extra: list[str] = []
    if found.kind == "events":
        told = wanted.constants.get("event_type")
        constant = _constant_type(observed, found) if told is None else told
        if told is not None:
            found.columns.pop("event_type", None)
        types = count_types(
            source, found.columns.get("event_type"), found.columns.get("event_value"),
            name=constant, max_rows=wanted.max_rows,
        )  # fmt: skip
        declared = declare(types, found.columns.get("event_value"))
        if "event_type" not in found.columns:
            extra += ["--const", f"event_type={next(iter(declared.declared))}"]
        for text, name in declared.renamed.items():
            if "event_type" in found.columns:
                extra += ["--event-type", f"{text}={name}"]
        sections = _comment(path, observed, found) + _scenes(declared) + _event_types(declared)
    else:
        fields = guess_fields(found, observed)
        for name, column in fields.mapped.items():
            found.take(name, column, "a list of numbers" if name.startswith("embeddings.") else "by its name")
        for name, separator in fields.separators.items():
            if separator != DEFAULT_SEPARATOR:
                extra += ["--split", f"{name}={separator}"]
        sections = _comment(path, observed, found) + _fields(found.kind, fields.declared)
    command = _command(path, wanted, found, extra)
    return FileDraft(path, found.kind, observed.rows, observed.whole, dict(found.columns), command, sections)


def _of_this_file(wanted: Wanted, observed: Observed) -> dict[str, str]:
    """With several files a `--map` is for those that have the column."""
    if len(wanted.files) == 1:
        return dict(wanted.mapped)
    return {name: column for name, column in wanted.mapped.items() if column in observed.columns}


def _constant_type(observed: Observed, found: Guess) -> str:
    """What events are where no column says it."""
    column = found.columns.get("event_value")
    if column is None:
        return "click"
    for name, columns in _NO_TYPE.items():
        if snake(column) in columns:
            return name
    return "rating" if looks_like_rating(observed.columns[column]) else "click"


def _command(path: Path, wanted: Wanted, found: Guess, extra: Sequence[str]) -> str:
    parts = ["silkrec", "data", "import", str(path)]
    pairs = [f"{name}={column}" for name, column in found.columns.items() if name != column]
    if any("," in pair for pair in pairs):
        parts += [part for pair in pairs for part in ("--map", pair)]
    elif pairs:
        parts += ["--map", ",".join(pairs)]
    if found.kind != "events":
        parts += ["--kind", found.kind]
    parts += extra
    if wanted.format is not None:
        parts += ["--format", wanted.format]
    if wanted.delimiter is not None:
        parts += ["--delimiter", wanted.delimiter]
    if not wanted.quotes:
        parts.append("--no-quotes")
    return shlex.join(parts)


def _head(drafts: Sequence[FileDraft]) -> str:
    lines = ["# Drafted by `silkrec schema infer`: what is guessed says so. Look it through, then import:"]
    lines += [f"#   {_line(each.command)}" for each in drafts]
    return "\n".join(lines) + "\n"


def _comment(path: Path, observed: Observed, found: Guess) -> str:
    looked = f"all {observed.rows:,} rows" if observed.whole else f"the first {observed.rows:,} rows"
    lines = [f"# {found.kind.capitalize()}: from {looked} of {_line(path.name)}."]
    if observed.malformed:
        lines.append(f"# {observed.malformed:,} rows do not have as many cells as the header and were left out.")
    for name, column in found.columns.items():
        why = found.why[name]
        lines.append(f"#   {name}: column {column!a}" + (f" ({why})" if why == "by --map" else f" (guessed: {why})"))
    return "\n".join(lines) + "\n"


def _scenes(found: Found) -> str:
    worth = ", ".join(f"{_key(name)}: {weight:g}" for name, weight in weights(found).items())
    return (
        "\nscenes:\n  home:\n"
        "    # Guessed: score = sum of weight x probability of the action. What is worth more to you?\n"
        f"    weights: {{{worth}}}\n    hide_seen: true\n"
    )


def _event_types(found: Found) -> str:
    lines = ["", "# Codes are stored with each event: never change or reuse one.", "event_types:"]
    for name, declared in found.declared.items():
        note = _line(found.notes[name])
        if declared.bands:
            lines.append(f"  # {note}; the bands are guessed.")
            lines += [f"  {_key(name)}:", *_settings(declared, "    "), "    bands:"]
            lines += [f"      - {_flow(band.model_dump(exclude_defaults=True))}" for band in declared.bands]
        else:
            told = {"code": declared.code, **_told(declared)}
            lines.append(f"  {_key(name)}: {_flow(told)}  # {note}")
    missing = {name: each for name, each in DEFAULT_EVENT_TYPES.items() if name not in found.declared}
    plain = {name: each for name, each in missing.items() if each.code is not None}
    if plain:
        lines.append("  # Not in this file; declare what your front end sends (impressions, feedback):")
        lines += [f"  # {name}: {_flow({'code': each.code, **_told(each)})}" for name, each in plain.items()]
    return "\n".join(lines) + "\n"


def _settings(declared: EventType, indent: str) -> list[str]:
    return [f"{indent}{name}: {_scalar(value)}" for name, value in _told(declared).items()]


def _told(declared: EventType) -> dict[str, Any]:
    return declared.model_dump(exclude={"code", "bands"}, exclude_defaults=True)


def _fields(kind: Kind, declared: Sequence[FieldGuess]) -> str:
    section = "item_fields" if kind == "items" else "user_fields"
    if not declared:
        return f"\n{section}: {{}}\n"
    lines = ["", f"{section}:"]
    for each in declared:
        told: dict[str, Any] = {"type": each.type}
        if kind == "items":
            told |= {"filterable": each.filterable, "feature": each.feature}
        lines.append(f"  {_key(each.name)}: {_flow(told)}  # {_line(each.note)}")
    return "\n".join(lines) + "\n"


def _flow(content: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_key(name)}: {_scalar(value)}" for name, value in content.items()) + "}"


def _key(name: str) -> str:
    return _scalar(name)


def _scalar(value: Any) -> str:
    """Quoted where YAML would read something else: `no`, `on`, `1e3`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _line(text: str) -> str:
    """Nothing of a file's content ends a comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
