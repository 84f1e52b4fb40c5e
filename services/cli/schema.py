"""`silkrec schema infer`: a first `silkrec.yaml` from a team's own files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from services.cli.context import say_json
from services.features.bulk.draft import Draft, Wanted, make_draft
from services.features.bulk.observe import MAX_ROWS
from services.features.bulk.plan import Kind, parse_pairs
from shared.errors import Conflict, ValidationFailed
from shared.settings.load import DEFAULT_FILE, load_settings

app = typer.Typer(no_args_is_help=True, help="What silkrec.yaml declares.")


@app.callback()
def _group() -> None:
    """What silkrec.yaml declares."""


@app.command()
def infer(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV, Parquet or JSON Lines; one a kind.")],
    mapped: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN where the guess would be wrong.")
    ] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--const", help="event_type=NAME where all rows are of one type.")
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="The file holds events.")] = False,
    items: Annotated[bool, typer.Option("--items", help="The file holds items.")] = False,
    users: Annotated[bool, typer.Option("--users", help="The file holds users.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write there; otherwise it is printed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --out.")] = False,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Look at so many rows at most.")] = MAX_ROWS,
    format_: Annotated[Literal["csv", "parquet", "jsonl"] | None, typer.Option("--format")] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="Of a CSV.", show_default=False)] = None,
    quotes: Annotated[bool, typer.Option("--quotes/--no-quotes")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Files, columns, commands and the draft as JSON.")] = False,
) -> None:
    """Drafts scenes, event types, item and user fields; comments say what is guessed, and from how many rows."""
    if out is not None and out.exists() and not force:
        raise Conflict(f"{out} exists; --force overwrites it, --out NAME writes elsewhere")
    told = parse_pairs("--const", constants or ())
    if told.keys() - {"event_type"}:
        raise ValidationFailed("--const: only event_type=NAME means something here")
    wanted = Wanted(
        files, parse_pairs("--map", mapped or ()), told, _kind(events, items, users), rows, format_, delimiter, quotes
    )
    if wanted.kind is not None and len(files) > 1:
        raise ValidationFailed(f"--{wanted.kind} is about one file; of several the kinds are guessed")
    draft = make_draft(wanted)
    _loads(draft)
    if out is not None:
        _write(out, draft.text)
    if as_json:
        described = [each.as_dict() for each in draft.files]
        say_json({"out": None if out is None else str(out), "files": described, "yaml": draft.text})
    elif out is None:
        typer.echo(draft.text, nl=False)
    else:
        _show(out, draft)


def _kind(events: bool, items: bool, users: bool) -> Kind | None:
    told: list[Kind] = []
    for name, given in (("events", events), ("items", items), ("users", users)):
        if given:
            told.append(name)  # type: ignore[arg-type]
    if len(told) > 1:
        raise ValidationFailed("give one of --events, --items and --users")
    return told[0] if told else None


def _loads(draft: Draft) -> None:
    """Before anybody sees it: the settings take it. Raises ConfigurationError."""
    with tempfile.TemporaryDirectory(prefix="silkrec-") as folder:
        path = Path(folder) / DEFAULT_FILE
        path.write_text(draft.text, "utf-8")
        load_settings(path, env={})


def _write(out: Path, text: str) -> None:
    draft = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(out)
    except OSError as error:
        raise ValidationFailed(f"--out {out} cannot be written: {error.strerror}") from None


def _show(out: Path, draft: Draft) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for each in draft.files:
        looked = "all of them" if each.whole else "the first ones"
        console.print(f"{escape(str(each.path))}: {each.kind}, {each.rows:,} rows ({looked})")
        for name, column in each.columns.items():
            console.print(escape(f"  {name:<14} {column}"))
    console.print(f"[bold]{escape(str(out))}[/bold] is drafted. Look it through, then import:")
    for each in draft.files:
        console.print(escape(f"  {each.command}"), markup=False)
