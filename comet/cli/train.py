"""comet-train: train a student from caches, without the teacher."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cache_tools.cli.config import TextOrTable, config_option
from cache_tools.cli.help import GroupedHelp, version_option
from cache_tools.cli.terminal import one_line_errors, quiet_libraries
from cache_tools.errors import CometError
from cache_tools.places.destinations import require_no_cache
from cache_tools.places.urls import is_url, name_of, printable_url
from cache_tools.settings import LocalCache, parse_bytes
from comet.paths import require_free


def _split_setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CometError(f"--set {text[:80]}: expected name=value, such as --set warmup_steps=100", exit_code=2)
    return name, value


def _user_cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comet"


SECTIONS = {
    "Caches and student": ("locations", "output", "student", "vocabulary", "init"),
    "Training": ("objective", "epochs", "steps", "batch_size", "learning_rate", "language_alpha", "seed"),
    "Execution": ("validate_steps", "dtype", "save_minutes", "resume", "local_cache", "local_size", "settings"),
}
EXAMPLES = (
    "comet-train --cache kin.zarr                               → kin-student, kin-student.html",
    "comet-train --cache kin.zarr --student nano --output kin-nano",
    "comet-train --cache kin.zarr --cache swa.zarr --language-alpha 0.5",
    "comet-train --cache kin.zarr --resume                      continues after a stop",
    "comet-train --cache https://lab.example.org/kin.zarr       reads shards on demand",
)


@click.command(
    cls=GroupedHelp,
    sections=SECTIONS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--cache", "locations", multiple=True, required=True,
              help="Folder or URL of a cache from `comet-cache build`. Repeatable: caches of one teacher.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the student.  [default: ./CACHE-student]")
@click.option("--student", default="auto",
              help="Shape: small, tiny or nano (85, 90 or 95 % smaller than the teacher), comet (6×256, the paper's), "
              "or a JSON file. auto: small.")  # fmt: skip
@click.option("--vocabulary", type=click.Choice(["auto", "trimmed", "full"]), default="auto",
              help="trimmed: the tokens of the corpus, for a better student of the same size. full: all of the "
              "teacher's, to train on other languages later. auto: trimmed where the tokenizer allows it.")  # fmt: skip
@click.option("--init", default="auto",
              help="Initial weights: start (the teacher's layers), cache (its embeddings), random, or a student's "
              "folder. auto: start where the cache has it, else cache.")  # fmt: skip
@click.option("--recipe", "objective", default="default", type=TextOrTable(),
              help="Objective (losses and optimiser): default, paper, or a TOML file of changes.")  # fmt: skip
@click.option("--epochs", type=float, help="Passes over the cache.  [default: the objective's]")
@click.option("--steps", type=int, help="Number of steps, instead of epochs.")
@click.option("--batch-size", type=int, help="Rows per step.  [default: the objective's]")
@click.option("--learning-rate", type=float, help="Peak learning rate.  [default: the objective's]")
@click.option("--language-alpha", default=1.0, help="Sample several caches in proportion to (rows ** ALPHA), 0.3 to 1.")
@click.option("--validate-steps", type=int, help="Steps between validations.  [default: one epoch]")
@click.option("--seed", default=0, help="Seed of the initial weights and the order of rows.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
              help="Precision of the body. auto: bfloat16 if it is faster, measured at the start.")  # fmt: skip
@click.option("--save-minutes", default=10.0, help="Minutes between checkpoints, in OUTPUT.checkpoints.")
@click.option("--resume", is_flag=True, help="Continue a stopped training from its newest checkpoint.")
@click.option("--local-cache", type=click.Path(path_type=Path),
              help="Folder for shards of caches at URLs.  [default: ~/.cache/comet]")  # fmt: skip
@click.option("--local-size", default="20GB", help="Limit of that folder; the least recently used shards go first.")
@click.option("--set", "settings", multiple=True,
              help="A field of transformers' TrainingArguments, as name=value; see the guide. Repeatable.")  # fmt: skip
@config_option
@version_option
@one_line_errors
def train(
    locations: tuple[str, ...],
    output: Path | None,
    objective: Any,
    local_cache: Path | None,
    local_size: str,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a student from a cache. Needs neither the teacher nor, with a cache on this disk, the network."""
    from cache_tools.store.reader import open_cache
    from comet.finished import has_finished
    from comet.recipes import choose_objective
    from comet.settings import StudentConfig

    names = [name_of(location).removesuffix(".zarr") for location in locations]
    output = output or Path("-".join(names) + "-student")
    arguments = tuple(_split_setting(text) for text in settings)
    config = StudentConfig(output=output, objective=choose_objective(objective), **options)
    named = [printable_url(location) if is_url(location) else str(Path(location)) for location in locations]
    if config.resume and os.path.isdir(output) and has_finished(replace(config, arguments=arguments), named):
        click.echo(f"{output}: this training has finished; there is nothing to resume")
        return
    require_free(output)
    if local_cache is not None:
        require_no_cache(local_cache, "--local-cache")
    local = LocalCache(local_cache or _user_cache_folder(), parse_bytes(local_size))
    for location in locations:
        if not is_url(location):
            open_cache(location)

    quiet_libraries()

    # torch and transformers take seconds to load, for which no mistake above should wait
    from comet.distillation import distill
    from comet.preparation import open_for_training
    from comet.report.summary import summary
    from comet.train.distributed import end_processes

    config = replace(config, arguments=arguments)
    caches = open_for_training(locations, local)
    result = distill(caches, config, say=click.echo)
    if end_processes():
        click.echo(summary(caches, config.objective, result))


if __name__ == "__main__":
    train()
