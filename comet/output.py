"""Write the outputs of a training: an ordinary transformers folder, a page about it, and its options."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cache_tools.cli.config import as_toml
from cache_tools.store.records import sync_file, sync_folder
from comet.paths import options_path, report_path, require_free
from comet.preparation import Preparation, has_learnt, peak_learning_rate
from comet.publish import published_folder
from comet.report.analysis import analyse
from comet.report.card import model_card
from comet.report.page import History, page
from comet.report.summary import attention_note, by_cache, facts, headline, kl_note
from comet.settings import Distilled, as_options
from comet.student.model import token_counts
from comet.train.callbacks import KeepBest
from comet.train.trainer import DistillationTrainer


def save_outputs(
    prepared: Preparation,
    trainer: DistillationTrainer,
    best: KeepBest,
    student: PreTrainedModel,
    result: Distilled,
) -> None:
    """Write the student, the page and the options; each gets its name once all of them are on the disk.

    The student in the trainer is the best one. Raises CometError if one of the outputs was created meanwhile.
    """
    distiller: Any = trainer.accelerator.unwrap_model(trainer.model)
    options = _used_options(prepared, distiller.bf16)
    beside = {
        report_path(result.output): _make_report(prepared, trainer, best, result, options),
        options_path(result.output): as_toml(options),
    }
    with published_folder(result.output) as folder:
        _write_student(prepared, student, result, folder)
        staged = {path: folder.with_name(path.name) for path in beside}
        for path, text in beside.items():
            staged[path].write_text(text, encoding="utf-8")
        for file in (*folder.iterdir(), *staged.values()):
            sync_file(file)
        require_free(result.output)
        for path, file in staged.items():
            file.rename(path)
    sync_folder(result.output.parent)


def _used_options(prepared: Preparation, bf16: bool) -> dict[str, Any]:
    """Return the options of `comet-train` that train this student again, with every automatic choice made."""
    return as_options(prepared.config, [cache.name for cache in prepared.caches]) | {
        "learning-rate": peak_learning_rate(prepared.config, prepared.shape),
        "dtype": "bfloat16" if bf16 else "float32",
    }


def _make_report(
    prepared: Preparation,
    trainer: DistillationTrainer,
    best: KeepBest,
    result: Distilled,
    options: dict[str, Any],
) -> str:
    """Return the page about a finished training as HTML."""
    distiller: Any = trainer.accelerator.unwrap_model(trainer.model)
    caches = prepared.caches
    counts = token_counts(caches, prepared.vocabulary)
    seen = analyse(distiller, prepared.validation, prepared.tokenizer, counts, trainer.args.device, prepared.collator)
    parts = ("loss", "kd", "hard", "attention")
    losses = [
        (int(line["step"]), {name: float(line[name]) for name in parts if name in line})
        for line in trainer.state.log_history
        if "loss" in line
    ]
    return page(
        headline(caches, result),
        facts(caches, prepared.config.objective, result, options),
        kl_note(caches, result.vocabulary.trimmed),
        History(losses, best.validations, best.step, best.learns_labels),
        result.before,
        result.after,
        seen,
        by_cache(caches, result),
        attention_note(prepared.config.objective),
    )


def _write_student(prepared: Preparation, student: PreTrainedModel, result: Distilled, folder: Path) -> None:
    """Write an ordinary transformers folder: weights, config, tokenizer, card."""
    student.set_attn_implementation("sdpa")
    student.cpu().save_pretrained(folder)
    prepared.save_tokenizer(folder)
    card = model_card(prepared.caches, prepared.config.objective, result, has_learnt(prepared.config))
    (folder / "README.md").write_text(card, encoding="utf-8")
