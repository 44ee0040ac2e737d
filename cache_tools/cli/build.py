"""comet-cache build."""

import os
from importlib.resources import files
from os.path import isfile
from pathlib import Path
from typing import Any

import click

from cache_tools.cli.config import config_option
from cache_tools.cli.help import GroupedHelp
from cache_tools.cli.info import show_human
from cache_tools.cli.terminal import one_line_errors, quiet_libraries, say_on_terminal
from cache_tools.errors import CometError
from cache_tools.settings import ATTENTION_KEYS, HUB_TOKENS, MOST_VIEWS, START_WIDTH, VIEW_TOKENS, BuildSettings
from cache_tools.signals import LOGITS
from cache_tools.text.files.text_file import ITEM_FORMATS
from cache_tools.text.languages import find_language, unlisted_note
from cache_tools.text.sources import find_sources, find_texts

DEFAULT_TEACHER = "Davlan/afro-xlmr-large"
SAMPLE_LANGUAGE = "kin"


def _comma_numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected numbers separated by commas, such as 1,2") from None


SECTIONS = {
    "Input and output": ("language", "teacher", "text", "sample", "out", "max_tokens", "exclude"),
    "Rows": ("seq_len", "views", "continue_views", "mask_prob", "seed"),
    "Signals": ("top_k", "keep", "temperatures", "attention_layers", "attention_queries", "attention_keys"),
    "Start of students": ("start_layers", "start_width"),
    "Execution": (
        *("dtype", "device", "batch_size", "rows_per_shard", "max_hours", "worker", "push_to", "i_may_share_this"),
        *("weak_teacher", "dry_run"),
    ),
}
EXAMPLES = (
    "comet-cache build --lang kin --sample                      first run, offline",
    "comet-cache build --lang kin --text corpus.txt.xz --dry-run",
    "comet-cache build --lang kin --text corpus.txt.xz --exclude afrisenti",
    "comet-cache build --lang kin --max-hours 7.5               Wikipedia and web text, one night",
    "comet-cache build --lang kin --push-to s3://lab/kin.zarr   continue on any machine",
)


@click.command(cls=GroupedHelp, sections=SECTIONS, examples=EXAMPLES)
@click.option(
    "--lang", "language", help="Language of the text, ISO 639-3 (kin, swa, hau, ibo, yor, …). With --sample it is kin."
)
@click.option("--teacher", help=f"Folder or hub name (NAME[@REVISION]) of a masked LM.  [default: {DEFAULT_TEACHER}]")
@click.option("--text", multiple=True,
              help="File or folder of .txt, .jsonl (also .gz, .xz, .zst) or .parquet, or hf:NAME[:CONFIG] on the hub. "
              "Repeatable.  [default: that of the language, see comet-cache languages]")  # fmt: skip
@click.option("--sample", is_flag=True, help="Use comet's small sample teacher and text (kin only), for a first run.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the cache.  [default: ./LANG.zarr]")
@click.option("--max-tokens", type=int,
              help="Stop after the document that reaches this many tokens.  [default: all; with text from the hub "
              f"{HUB_TOKENS:,}]")  # fmt: skip
@click.option("--exclude", multiple=True,
              help="Evaluation file or folder (also .tsv, .csv, CoNLL): exclude documents that share 8 words in a row "
              "with it. Repeatable.")  # fmt: skip
@click.option("--seq-len", default=BuildSettings.seq_len, help="Tokens per row.")
@click.option("--views", type=int,
              help="Masked views of each row.  "
              f"[default: as many as make {VIEW_TOKENS // 10**6} million tokens, at most {MOST_VIEWS}]")  # fmt: skip
@click.option("--continue-views", default=BuildSettings.continue_views,
              help="Views in a chain: each but the first begins from the one before, its masked tokens filled by the "
              "teacher. 4 helps with a text of a few thousand tokens; 1 begins every view from the text.")  # fmt: skip
@click.option("--mask-prob", default=BuildSettings.mask_prob, help="Share of a row's tokens that each view masks.")
@click.option("--top-k", default=BuildSettings.top_k, help="Largest number of tokens kept at each target.")
@click.option("--keep", type=click.Choice(list(LOGITS)), default=BuildSettings.keep,
              help="threshold: every token with probability above 1/k, and an unbiased sample of the others. topk: the "
              "k best tokens, and the mass of all others.")  # fmt: skip
@click.option("--attention-layers", default=BuildSettings.attention_layers,
              help="Layers whose attention is kept: spread:N (evenly, with the last), every:N, last, all, none, "
              "or numbers such as -1,-7.")  # fmt: skip
@click.option("--attention-queries", default=BuildSettings.attention_queries,
              help="Keep the attention of one token in this many, different ones in every row and layer.")  # fmt: skip
@click.option("--attention-keys", type=int,
              help="Largest number of keys kept for each such token: those with a share above 1/k, and a sample of the "
              f"others.  [default: {ATTENTION_KEYS}, or --seq-len if less]")  # fmt: skip
@click.option("--start-layers", default=BuildSettings.start_layers,
              help="The teacher's layers that students may start from: all, none, spread:N, every:N, last, or numbers. "
              "auto: all, or none if the kind of the teacher's layers is unknown.")  # fmt: skip
@click.option("--start-width", type=int,
              help="The widest student that may start from them.  "
              f"[default: the widest up to {START_WIDTH} that the teacher's heads divide]")  # fmt: skip
@click.option("--temperatures", default="1", callback=_comma_numbers, help="Keep logits at these temperatures (1,2).")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              help="Precision of the teacher. auto: float32 on a CPU, bfloat16 (or float16) on a GPU.")  # fmt: skip
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
@click.option("--batch-size", type=int, help="Rows per forward pass.  [default: as device and memory allow]")
@click.option("--rows-per-shard", default=BuildSettings.rows_per_shard,
              help="Rows per file of each array; a crash loses at most one shard.")  # fmt: skip
@click.option(
    "--weak-teacher",
    is_flag=True,
    help="Build even if the teacher predicts masked tokens no better than the most frequent token would.",
)
@click.option("--seed", default=0, help="Seed of the masking.")
@click.option("--max-hours", type=float,
              help="Start no shard once this call has run so many hours; run again to continue.  "
              "[default: no limit]")  # fmt: skip
@click.option("--worker", metavar="I/N",
              help="Build part I of N, in a shared folder or to be merged.  [default: torchrun's rank]")  # fmt: skip
@click.option("--push-to", metavar="URL",
              help="Push every shard to this folder or URL (ssh://HOST/DIR, s3://BUCKET/DIR, …) as soon as it is "
              "committed. Shards already there are fetched, not rebuilt: run the same command on any machine to "
              "continue.")  # fmt: skip
@click.option("--i-may-share-this", is_flag=True,
              help="With --push-to: push even if the licence of a text or of the teacher is unknown or restricts its "
              "use.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Measure a few rows, print the cost of the build, write nothing.")
@config_option
@one_line_errors
def build(
    language: str | None, teacher: str | None, text: tuple[str, ...], sample: bool, out: Path | None, views: int | None,
    dry_run: bool, max_hours: float | None, worker: str | None, push_to: str | None,
    i_may_share_this: bool, **options: Any,
) -> None:  # fmt: skip
    """Run a teacher once over a text and cache the signals that students need.

    Run the same command again after a crash or a stop to continue.
    """
    if language is None and not sample:
        raise CometError("--lang: expected the language of the text, such as kin (comet-cache languages)", exit_code=2)
    code = find_language(SAMPLE_LANGUAGE if language is None else language).code
    folder = Path(str(files("cache_tools.sample")))
    if sample:
        if code != SAMPLE_LANGUAGE:
            raise CometError(f"--sample is in {SAMPLE_LANGUAGE}, found --lang {code}; omit one of them", exit_code=2)
        teacher = str(folder / "teacher") if teacher is None else teacher
        text = text or (str(folder / "text.txt"),)
    text = text or find_language(code).corpora
    if not text:
        raise CometError(
            f"--lang {code}: no default corpus; give --text FILE_OR_FOLDER (`comet-cache languages` lists those "
            "that have one)",
            exit_code=2,
        )
    settings = BuildSettings(
        out=out or Path(f"{code}.zarr"),
        language=code,
        teacher=DEFAULT_TEACHER if teacher is None else teacher,
        text=text,
        views=views,
        **options,
    )

    find_texts(tuple(one for one in settings.text if not os.path.isdir(one)))  # what a folder lacks is said once, later
    find_sources(tuple(one for one in settings.exclude if not os.path.isdir(one)), "--exclude", ITEM_FORMATS)
    if (doubt := unlisted_note(code)) is not None:
        click.echo(doubt)
    if not dry_run:
        _say_if_complete(settings.out)
    quiet_libraries()

    # torch and transformers take seconds to load, for which no mistake above should wait
    from cache_tools.build.build import build_cache
    from cache_tools.build.dry_run import estimate
    from cache_tools.build.workers import parse_worker
    from cache_tools.cli.facts import describe

    if dry_run:
        click.echo(estimate(settings))
        return
    cache = build_cache(settings, parse_worker(worker), max_hours, push_to, i_may_share_this)
    facts = describe(cache)
    show_human(cache.root, facts)
    if facts["state"] == "complete":
        click.echo(f"train a student:  comet-train --cache {settings.out}")


def _say_if_complete(out: Path) -> None:
    """Say that the cache is complete before torch is loaded; it is compared with teacher and text after that."""
    from cache_tools.store.reader import open_cache
    from cache_tools.store.recipe import GROUPS

    # unlike Path.is_file, isfile is also False for a name that no disk takes
    if isfile(out / "zarr.json") and not any(map(open_cache(out).missing, GROUPS)):
        say_on_terminal(f"{out}: already complete; comparing it with the teacher and the text")
