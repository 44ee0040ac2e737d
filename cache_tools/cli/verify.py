"""comet-cache verify and repair."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.parts import CacheFolder
from cache_tools.cli.terminal import one_line_errors, painted, quiet_libraries
from cache_tools.errors import CometError, visible
from cache_tools.settings import RerunSettings

if TYPE_CHECKING:
    from cache_tools.verify.report import Damage, Report

MOST_SHOWN = 50
DAMAGED, SOUND = "  DAMAGED", "sound and complete"


def _teacher_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --teacher and its options to a command, as the argument `again`: None without --teacher."""
    dtypes = click.Choice(["auto", "float32", "bfloat16", "float16"])
    options = [
        click.option("--teacher", help="Folder or hub name of the cache's teacher: rerun it on some rows and compare."),
        click.option("--rows", default=RerunSettings.rows, help="Rows to rerun the teacher on."),
        click.option("--seed", default=RerunSettings.seed, help="Seed for the choice of rows."),
        click.option("--dtype", type=dtypes, default="auto", help="auto: that of the shard, if the device has it."),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …"),
        click.option("--batch-size", type=int, help="Rows per forward pass.  [default: as device and memory allow]"),
    ]

    @wraps(command)
    def with_settings(*args: Any, teacher: str | None, **others: Any) -> None:
        settings = {name: others.pop(name) for name in ("rows", "seed", "dtype", "device", "batch_size")}
        if teacher is None and (unused := _given(settings)):
            raise CometError(f"{', '.join(unused)}: nothing to do without --teacher", exit_code=2)
        if teacher is not None:
            quiet_libraries()
        command(*args, again=RerunSettings(teacher, **settings) if teacher is not None else None, **others)

    decorated: Callable[..., None] = with_settings
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _given(options: Iterable[str]) -> list[str]:
    """Return those of these options that the command line gives."""
    source = click.get_current_context().get_parameter_source
    return [f"--{name.replace('_', '-')}" for name in options if source(name) == ParameterSource.COMMANDLINE]


@click.command("verify", cls=GroupedHelp)
@click.argument("cache", type=CacheFolder())
@click.option("--deep", is_flag=True, help="Also check every value: ranges, masks, masses, attention, token counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
@_teacher_options
def verify_cache(cache: Path, deep: bool, as_json: bool, again: RerunSettings | None) -> None:
    """Compare every file of a cache with its ledger; exit 1 if anything is damaged.

    An incomplete cache passes if its finished part is sound. --teacher (with --rows, --seed, --dtype, --device,
    --batch-size) also reruns the teacher on some rows and compares its values, within the precision of its dtype.
    """
    from cache_tools.verify.verify import verify

    report = verify(cache, deep, again)
    if as_json:
        click.echo(json.dumps(_as_facts(report), indent=1))
    else:
        for line in as_lines(report):
            color = None
            if line.startswith(DAMAGED):
                color = "red"
            elif line == SOUND:
                color = "green"
            click.echo(painted(visible(line), fg=color))
    sys.exit(1 if report.damage else 0)


@click.command(cls=GroupedHelp)
@click.argument("cache", type=CacheFolder())
@click.option("--deep", is_flag=True, help="Also drop shards with impossible values.")
@one_line_errors
@_teacher_options
def repair(cache: Path, deep: bool, again: RerunSettings | None) -> None:
    """Drop the damaged shards of a cache, so that `comet-cache build` rebuilds them.

    Damage is what `comet-cache verify` finds with the same options. Only files of damaged shards are removed. Sealed
    files (metadata, vocabulary, tokenizer, start) cannot be dropped: pull them from another copy.
    """
    from cache_tools.store.reader import open_cache
    from cache_tools.store.writer import drop_shard
    from cache_tools.verify.verify import verify

    report = verify(cache, deep, again)
    for group, shard in report.damaged_shards:
        drop_shard(open_cache(cache), group, shard)
        click.echo(f"dropped shard {group} {shard}")
    if left := [damage for damage in report.damage if damage.shard is None]:
        raise CometError(f"{cache}: damage that repair cannot fix ({len(left)}): {left[0].message}. {_way_out(left)}")
    if report.damaged_shards:
        click.echo(f"{len(report.damaged_shards)} shards dropped; {_made_again(report)}")
    else:
        click.echo("nothing is damaged")


def _as_facts(report: "Report") -> dict[str, object]:
    state = "incomplete" if report.missing else "complete"
    return {
        "state": "damaged" if report.damage else state,
        "deep": report.deep,
        "text_detached": report.attaching is not None,
        "shards": report.shards,
        "missing_shards": report.missing,
        "files": report.files,
        "bytes": report.size,
        "damaged_shards": [list(key) for key in report.damaged_shards],
        "damage": [damage.message for damage in report.damage],
        "notes": report.notes,
        **({"teacher": [run.facts() for run in report.runs]} if report.runs is not None else {}),
    }


def as_lines(report: "Report") -> list[str]:
    checked = "every value of" if report.deep else "every byte of"
    lines = [f"{report.root}: {checked} {report.shards} shards, {report.files} files, {report.size / 1e6:,.1f} MB"]
    lines += [f"  note: {note}" for note in report.notes[:MOST_SHOWN]]
    lines += [line for run in report.runs or [] for line in run.lines()]
    lines += [f"{DAMAGED}  {damage.message}" for damage in report.damage[:MOST_SHOWN]]
    if len(report.damage) > MOST_SHOWN:
        lines.append(f"  … and {len(report.damage) - MOST_SHOWN} more (--json lists all)")
    if report.damaged_shards:
        lines.append("damaged shards: " + ", ".join(f"{group} {shard}" for group, shard in report.damaged_shards))
        lines.append(f"`{_repairing(report)}` drops them; {_made_again(report)}")
    elif report.damage:
        lines.append(f"repair cannot fix this. {_way_out(report.damage)}")
    elif report.missing:
        total = report.shards + report.missing
        lines.append(f"sound as far as it goes: {report.missing} of {total} shards are not built yet")
    else:
        lines.append(SOUND)
    if report.attaching is not None:
        lines.append(f"it holds no text; to train from it attach the text first: {report.attaching}")
    return lines


def _way_out(left: list["Damage"]) -> str:
    """Return what to do about damage outside shards."""
    if all(damage.foreign for damage in left):
        return "Remove what does not belong; the cache itself is not damaged"
    foreign = ", and remove what does not belong" if any(damage.foreign for damage in left) else ""
    return (
        "Copy the damaged files from a sound copy (`comet-cache pull` into this folder copies all but zarr.json and "
        f"ledger/seal.json), or build the cache again{foreign}"
    )


def _made_again(report: "Report") -> str:
    if report.attaching is not None:
        return "the same `comet-cache pull` fetches them again"
    if report.is_continued:
        return (
            "the same `comet-cache build` rebuilds them, but not tokens of views that the teacher continued: only "
            "`comet-cache pull` from a sound copy brings these back"
        )
    return "the same `comet-cache build` rebuilds them"


def _repairing(report: "Report") -> str:
    """Return the command that finds the same damage again and drops it."""
    parts = ["comet-cache repair", str(report.root)]
    if report.deep:
        parts.append("--deep")
    if report.again is not None:
        given = asdict(report.again)
        for field in fields(RerunSettings):
            if given[field.name] != field.default:
                parts.append(f"--{field.name.replace('_', '-')} {given[field.name]}")
    return " ".join(parts)
