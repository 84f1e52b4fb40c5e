"""`silkrec data import`: a file of events, items or users straight into the database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from services.cli.context import load, opened, say_json
from services.features.bulk.job import ID_PREFIX, Summary, Wanted, run_import
from services.features.bulk.plan import parse_pairs
from shared.errors import DatabaseUnavailable, SilkrecError, ValidationFailed
from shared.settings.load import Loaded
from shared.storage import migrate
from shared.storage.database import Database

app = typer.Typer(no_args_is_help=True, help="Bulk data.")


@app.callback()
def _group() -> None:
    """Bulk data."""


@app.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV (also .tsv, .gz), Parquet or JSON Lines.", show_default=False)],
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", help="FIELD=COLUMN, commas between several; columns of the right name need none."),
    ] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--const", help="FIELD=VALUE for every row, e.g. event_type=rating.")
    ] = None,
    kind: Annotated[Literal["events", "items", "users"], typer.Option("--kind")] = "events",
    types: Annotated[
        list[str] | None, typer.Option("--event-type", help="What the file says=declared, e.g. addToCart=add_to_cart.")
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="FIELD=SEPARATOR of a list's entries; | otherwise.")
    ] = None,
    time_unit: Annotated[
        Literal["auto", "s", "ms", "us"], typer.Option("--time-unit", help="Of times that are numbers since 1970.")
    ] = "auto",
    rejects: Annotated[
        Path | None, typer.Option("--rejects", help="JSON Lines of the rows left out: row, code, message, values.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row, write nothing to the database.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on where the last run over this file stopped, or anew.")
    ] = True,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=0, help="A transaction; 0: 20,000 events.")] = 0,
    id_prefix: Annotated[str, typer.Option("--id-prefix", help="Of event ids made here.")] = ID_PREFIX,
    format_: Annotated[Literal["csv", "parquet", "jsonl"] | None, typer.Option("--format")] = None,
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Of a CSV; the header's own otherwise.", show_default=False)
    ] = None,
    quotes: Annotated[bool, typer.Option("--quotes/--no-quotes", help='Whether " encloses cells of a CSV.')] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable summary.")] = False,
) -> None:
    """Loads a file by the rules of the API. Rows that do not fit are left out and named; the others are stored.

    Killed, it goes on where it stopped when the same command is run again. A file imported twice changes nothing: an
    event without an event_id of its own gets one from its row number and content. Times without an offset are in UTC.
    """
    wanted = Wanted(
        file, kind, parse_pairs("--map", mapped or ()), parse_pairs("--const", constants or ()),
        parse_pairs("--event-type", types or ()), _separators(splits or ()), time_unit, format_, delimiter, quotes,
        id_prefix, rejects, batch_rows, not resume, dry_run,
    )  # fmt: skip
    loaded = load(ctx)
    with _database(loaded, dry_run) as database, _bar(as_json) as bar:
        task = bar.add_task(file.name, total=None)

        def show(done: int, total: int | None) -> None:
            if bar.tasks[0].completed:
                bar.update(task, completed=done, total=total)
            else:  # rows of earlier runs are no speed of this one
                bar.reset(task, completed=done, total=total)

        try:
            summary = run_import(database, loaded.settings, wanted, show)
        except DatabaseUnavailable as error:
            raise _Interrupted(f"{error.detail}. What was imported is safe: run the same command to go on") from error
    if as_json:
        say_json(summary.as_dict())
    else:
        _show(summary, wanted, asked=database is not None)


class _Interrupted(SilkrecError):
    retryable = True


def _separators(texts: list[str] | tuple[()]) -> dict[str, str]:
    """Not by `parse_pairs`: a separator may be a comma or a space."""
    found = {}
    for text in texts:
        name, equals, separator = text.partition("=")
        if not name or not equals or not separator:
            raise ValidationFailed(f"--split {text!r}: write FIELD=SEPARATOR, for example 'genres=,'")
        found[name.strip()] = separator
    return found


@contextlib.contextmanager
def _database(loaded: Loaded, dry_run: bool) -> Iterator[Database | None]:
    """A dry run makes no database, and brings none up to date: then nobody is asked what is known already."""
    if not dry_run:
        with opened(loaded) as database:
            yield database
        return
    url = loaded.settings.database_url()
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        yield None
        return
    with opened(loaded, upgrade=False) as database:
        yield None if migrate.pending(database) else database


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s")


def _bar(as_json: bool) -> Progress:
    done = TextColumn("{task.completed:,.0f} rows")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), done, _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal)


def _show(summary: Summary, wanted: Wanted, *, asked: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if summary.finished_before:
        left_out = f" ({summary.rejected_before:,} rows were left out)" if summary.rejected_before else ""
        console.print(
            f"{escape(summary.source)} was imported before, all {summary.resumed_after:,} rows of it{left_out}. "
            "--restart looks at every row again; what is stored stays as it is."
        )
        return
    if summary.resumed_after:
        console.print(f"Went on behind row {summary.resumed_after:,}, where the last run stopped.")
    verb = "would be stored" if summary.dry_run else "stored"
    known = f", {summary.duplicates:,} known already" if wanted.kind == "events" else ""
    console.print(
        f"[bold]{summary.accepted:,} {wanted.kind} {verb}[/bold]{known}, {summary.rejected:,} left out, "
        f"in {summary.seconds:.1f} s ({summary.rows_per_s:,.0f} rows/s)."
    )
    if summary.new_items is not None and summary.new_users is not None:
        console.print(f"They would bring {summary.new_users:,} new users and {summary.new_items:,} new items.")
    if summary.dry_run:
        note = "" if asked else " There is no database yet to ask what is known already."
        console.print(f"Dry run: the database was not changed.{note}")
    pairs = ", ".join(f"{name}={column}" for name, column in summary.columns.items())
    console.print(
        escape(f"Columns: {pairs}" + (f"; not used: {', '.join(summary.ignored)}" if summary.ignored else ""))
    )
    _show_rejects(console, summary, wanted)


def _show_rejects(console: Console, summary: Summary, wanted: Wanted) -> None:
    if not summary.rejected:
        return
    causes = ", ".join(f"{code} {count:,}" for code, count in summary.rejected_by.most_common())
    console.print(escape(f"Left out: {causes}"), style="yellow")
    for reject in summary.examples:
        console.print(escape(f"  row {reject.row:,}: {reject.message}"))
    hidden = summary.rejected - len(summary.examples)
    if wanted.rejects is not None:
        console.print(escape(f"All of them are in {wanted.rejects}."))
    elif hidden > 0:
        console.print(f"  and {hidden:,} more; --rejects FILE lists all of them")
