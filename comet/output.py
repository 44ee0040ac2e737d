"""What a training leaves: an ordinary transformers folder, and a page about it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import XLMRobertaForMaskedLM

from cache_tools.cli.config import as_toml
from cache_tools.errors import CometError
from cache_tools.store.reader import Cache
from comet.report.analysis import analyse
from comet.report.page import History, page
from comet.report.summary import facts, kl_note, model_card
from comet.settings import Distilled, StudentConfig, run_identity
from comet.student.model import StudentShape, token_counts
from comet.student.vocabulary import student_tokenizer
from comet.train.callbacks import KeepBest
from comet.train.objective import as_option
from comet.train.trainer import DistillationTrainer


def report_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.html")


def runs_path(output: Path) -> Path:
    """Where TensorBoard's files lie in the end, if they were asked for."""
    return output.with_name(f"{output.name}.runs")


def options_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.toml")


def options_file(caches: Sequence[Cache], config: StudentConfig, shape: StudentShape, bf16: bool) -> str:
    """The options of `comet-train` that train this student again, every automatic choice made."""
    objective = config.objective
    return as_toml(
        {
            "cache": [cache.name for cache in caches],
            "output": str(config.output),
            "student": config.student,
            "vocabulary": config.vocabulary,
            "init": config.init,
            "recipe": as_option(objective),
            "epochs": None if config.steps else config.epochs or float(objective.epochs),
            "steps": config.steps,
            "batch-size": config.batch_size or objective.batch_size,
            "learning-rate": config.learning_rate or objective.peak_learning_rate(shape.hidden),
            "language-alpha": config.language_alpha,
            "validate-steps": config.validate_steps,
            "seed": config.seed,
            "dtype": "bfloat16" if bf16 else "float32",
            "save-minutes": config.save_minutes,
            "set": dict(config.arguments),
        }
    )


def make_report(
    trainer: DistillationTrainer, best: KeepBest, caches: Sequence[Cache], config: StudentConfig, result: Distilled
) -> str:
    """The page about a finished training; the student in the trainer is the best one."""
    distiller: Any = trainer.accelerator.unwrap_model(trainer.model)
    counts = token_counts([cache.vocabulary for cache in caches], result.vocabulary)
    tokenizer = student_tokenizer(caches[0], result.vocabulary)
    seen = analyse(distiller, trainer.validation_rows.shards, tokenizer, counts, trainer.args.device, trainer.collator)
    parts = ("loss", "kd", "hard", "attention")
    losses = [
        (int(line["step"]), {name: float(line[name]) for name in parts if name in line})
        for line in trainer.state.log_history
        if "loss" in line
    ]
    return page(
        config.output.name,
        facts(caches, config.objective, result, run_identity(config, caches)),
        kl_note(caches[0], result.vocabulary.trimmed),
        History(losses, best.validations, best.step),
        result.before,
        result.after,
        seen,
    )


def save_student(
    student: XLMRobertaForMaskedLM, caches: Sequence[Cache], config: StudentConfig, result: Distilled
) -> None:
    """An ordinary transformers folder, under its name only when it is whole: weights, config, tokenizer, card.

    Raises CometError, naming where the student lies instead, when the output has come to exist meanwhile.
    """
    config.output.parent.mkdir(parents=True, exist_ok=True)
    student.set_attn_implementation("sdpa")
    folder = Path(tempfile.mkdtemp(prefix=f".{config.output.name}-", dir=config.output.parent))
    student.cpu().save_pretrained(folder)
    tokenizer = student_tokenizer(caches[0], result.vocabulary)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the student knows one token type only
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(caches, config.objective, result), encoding="utf-8")
    readable = (folder / "README.md").stat().st_mode  # temporary folders and safetensors are private by default
    for path in folder.iterdir():
        path.chmod(readable)
    folder.chmod(readable | (readable & 0o444) >> 2)
    try:
        folder.rename(config.output)
    except OSError as error:
        raise CometError(f"{config.output}: came to exist during the training; the student lies in {folder}") from error
