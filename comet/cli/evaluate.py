"""comet-eval: fine-tune and compare models on the field's tasks."""

from pathlib import Path
from typing import Any

import click

from cache_tools.cli.config import config_option
from cache_tools.cli.help import GroupedHelp, version_option
from cache_tools.cli.terminal import one_line_errors, quiet_libraries
from cache_tools.errors import Stopped

TASK_NAMES = "afrisenti, masakhaner, masakhanews, sib200, masakhapos"


SECTIONS = {
    "What": ("models", "task", "languages", "data"),
    "Fine-tuning": ("seeds", "epochs", "batch_size", "learning_rate", "max_length", "device"),
    "Output": ("results", "output"),
}
EXAMPLES = (
    "comet-eval --model Davlan/afro-xlmr-large --model kin-student --task afrisenti --lang kin",
    "comet-eval --model Davlan/afro-xlmr-large --model student --task afrisenti --lang kin --lang swa --lang hau",
    "comet-eval --model kin-student --task masakhaner --lang kin --data masakhane-ner/data --output kin-names",
)


@click.command(
    cls=GroupedHelp,
    sections=SECTIONS,
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--model", "models", multiple=True, required=True,
              help="Folder or hub name of a masked LM. Repeatable: the first is the reference.")  # fmt: skip
@click.option("--task", required=True, help=f"{TASK_NAMES}.")
@click.option(
    "--lang",
    "languages",
    multiple=True,
    required=True,
    help="ISO 639-3 (kin, swa, hau, ibo, yor, …). Repeatable: a table of languages and their mean.",
)
@click.option("--data", type=click.Path(path_type=Path),
              help="Folder of the original files; for several --lang, with a subfolder for each.  "
              "[default: the hub]")  # fmt: skip
@click.option("--seeds", default=3, help="Number of fine-tunings per model, with seeds 0, 1, ….")
@click.option("--epochs", default=5, help="Passes over the training split; the scores are those after the last.")
@click.option("--batch-size", default=16, help="Items per step.")
@click.option("--learning-rate", type=float,
              help="Peak learning rate.  [default: 2e-5 at hidden size 1024, more for narrower models]")  # fmt: skip
@click.option("--max-length", type=int, help="Longest input in tokens.  [default: 128 or 256, by task]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to fine-tune on.")
@click.option("--results", type=click.Path(path_type=Path),
              help="File of all runs; runs in it are not repeated. Several --lang add their names to it.  "
              "[default: ./eval-TASK-LANG.json]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path),
              help="Folder for the best fine-tuned model; of several models, the best of all but the first. "
              "It is fine-tuned once more, since no run keeps its weights.")  # fmt: skip
@config_option
@version_option
@one_line_errors
def evaluate_models(languages: tuple[str, ...], **options: Any) -> None:
    """Fine-tune masked LMs on a task, in one or several languages, and compare their scores, sizes and speed.

    Run the same command again after a stop, or with more seeds or models: it resumes.
    """
    from comet.evaluate.settings import of_each_language, require_models, require_places
    from comet.evaluate.tasks import find_task

    settings = of_each_language(languages, **options)
    find_task(settings[0].task)
    for one in settings:
        require_models(one)
        require_places(one)

    quiet_libraries()

    # torch and transformers take seconds to load, for which no mistake above should wait
    from comet.evaluate.evaluation import evaluate_prepared
    from comet.evaluate.preparation import prepare
    from comet.evaluate.scoreboard import score_table, scores_by_language

    found = []
    for prepared in prepare(settings):
        try:
            evaluation = evaluate_prepared(prepared, say=click.echo)
        except KeyboardInterrupt:
            raise Stopped(_where_it_stopped(prepared.settings.results_path)) from None
        click.echo(score_table(evaluation.data, evaluation.models))
        click.echo(f"all runs with their predictions: {evaluation.results}; charts: {evaluation.page}")
        found.append((evaluation.data, evaluation.models))
    if len(found) > 1:
        click.echo(scores_by_language(found))


def _where_it_stopped(results: Path) -> str:
    if not results.exists():
        return "stopped before the first fine-tuning was finished; nothing is kept"
    return f"stopped; finished fine-tunings are in {results}, and the same command goes on after them"


if __name__ == "__main__":
    evaluate_models()
