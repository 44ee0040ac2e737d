"""From caches to a student folder: the whole of `comet-train` as one function."""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, XLMRobertaForMaskedLM

from cache_tools.errors import CometError
from cache_tools.store.reader import Cache, open_cache
from comet.data import CacheRows, collate, require_compatible, shards_of
from comet.distiller import Distiller
from comet.evaluation import Validation
from comet.recipes import DEFAULT, TrainingRecipe
from comet.report import announcement, model_card
from comet.student import StudentShape, choose_shape, earlier_student, new_student, shape_of
from comet.trainer import DistillationTrainer
from comet.vocabulary import (
    StudentVocabulary,
    full_vocabulary,
    in_vocabulary,
    student_tokenizer,
    teacher_mass_outside,
    trimmed_vocabulary,
)


@dataclass(frozen=True)
class StudentConfig:
    """What a person asks of `comet-train`. `epochs`, `batch_size` and `learning_rate` default to the recipe's.

    `vocabulary` is full or trimmed; `init` is cache, random, or the folder of an earlier student; `arguments` are
    further fields of transformers' TrainingArguments. Raises CometError for numbers not above 0.
    """

    output: Path
    student: str = "auto"
    vocabulary: str = "full"
    init: str = "cache"
    recipe: TrainingRecipe = DEFAULT
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise CometError(f"--{name.replace('_', '-')} {value}: expected a number above 0", exit_code=2)


@dataclass(frozen=True)
class Distilled:
    """What came of it: where the student lies, and how it did on the validation rows before and after.

    The student is the one of `best_step`, where it was nearest to the teacher.
    """

    output: Path
    shape: StudentShape
    vocabulary: StudentVocabulary
    parameters: int
    teacher_parameters: int
    before: Validation
    after: Validation
    steps: int
    best_step: int
    seconds: float


def open_for_training(paths: Sequence[Path]) -> list[Cache]:
    """The caches, complete and of one teacher. Raises CometError otherwise."""
    caches = [open_cache(path) for path in paths]
    for cache in caches:
        cache.require_complete()
    require_compatible(caches)
    return caches


def distill(
    caches: Sequence[Cache], config: StudentConfig, say: Callable[[str], None] = lambda line: None
) -> Distilled:
    """Trains a student from caches and writes it to `config.output`, which must not exist. `say` is told what begins.

    Raises CometError when the output exists, the caches hold too little, or the training diverges.
    """
    if config.output.exists():
        raise CometError(f"{config.output}: exists; choose another --output or remove it first", exit_code=2)
    training, validation = shards_of(caches, "train"), shards_of(caches, "validation")
    if not validation:
        raise CometError(f"{caches[0].root}: no validation rows, so nothing could be said of a student; give more text")
    vocabulary = choose_vocabulary(config.vocabulary, caches)
    shape, student = begin_student(config, caches, vocabulary)
    distiller = Distiller(student, caches[0].recipe, config.recipe, vocabulary)
    outside = teacher_mass_outside(validation, vocabulary) if vocabulary.trimmed else None
    say(announcement(caches[0], distiller, shape, vocabulary, outside))
    unused = {"row_key", "tail_logmass" if vocabulary.trimmed else "tail_logmass_seen"}
    unused |= set() if distiller.matches_attention else {"attention"}
    names = [name for name in caches[0].extent.arrays if name not in unused]
    with tempfile.TemporaryDirectory(prefix="comet-train-") as scratch:
        trainer = DistillationTrainer(
            distiller,
            training_arguments(config, shape, Path(scratch)),
            CacheRows(training, names),
            validation,
            collator=lambda arrays: in_vocabulary(collate(arrays), vocabulary),
        )
        trainer.remove_callback(PrinterCallback)
        before = trainer.validate()
        best = KeepBest(trainer, before, config.recipe.patience)
        trainer.add_callback(LiveLine())
        trainer.add_callback(best)
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        student.load_state_dict(best.weights)
    if best.step == 0 and not best.latest.cross_entropy < float("inf"):
        raise CometError("the training diverged: the validation loss is not finite; use a lower --learning-rate")
    result = Distilled(
        output=config.output,
        shape=shape,
        vocabulary=vocabulary,
        parameters=sum(p.numel() for p in student.parameters()),
        teacher_parameters=caches[0].recipe.teacher_parameters,
        before=before,
        after=best.validation,
        steps=trainer.state.global_step,
        best_step=best.step,
        seconds=seconds,
    )
    save_student(student, caches, config, result)
    return result


def choose_vocabulary(requested: str, caches: Sequence[Cache]) -> StudentVocabulary:
    """Raises CometError where the vocabulary cannot be trimmed."""
    return trimmed_vocabulary(caches) if requested == "trimmed" else full_vocabulary(caches[0].recipe)


def begin_student(
    config: StudentConfig, caches: Sequence[Cache], vocabulary: StudentVocabulary
) -> tuple[StudentShape, XLMRobertaForMaskedLM]:
    """The student at step 0. Raises CometError when it cannot be made, or an earlier one cannot go on with this."""
    dropout = config.recipe.dropout
    if config.init in ("cache", "random"):
        shape = choose_shape(config.student, caches[0], len(vocabulary))
        return shape, new_student(shape, caches, vocabulary, dropout, config.seed, config.init == "cache")
    student = earlier_student(Path(config.init), caches, vocabulary, dropout)
    shape = shape_of(student, Path(config.init).name)
    if config.student != "auto" and replace(choose_shape(config.student, caches[0], 0), name=shape.name) != shape:
        raise CometError(
            f"--student {config.student}: but --init {config.init} is {shape}; leave one away", exit_code=2
        )
    return shape, student


def training_arguments(config: StudentConfig, shape: StudentShape, scratch: Path) -> TrainingArguments:
    """Raises CometError for a field that TrainingArguments does not have or refuses."""
    recipe = config.recipe
    fields: dict[str, Any] = {
        "output_dir": str(scratch),
        "num_train_epochs": config.epochs or recipe.epochs,
        "max_steps": config.steps or -1,
        "per_device_train_batch_size": config.batch_size or recipe.batch_size,
        "per_device_eval_batch_size": 32,
        "learning_rate": config.learning_rate or recipe.peak_learning_rate(shape.hidden),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        return TrainingArguments(**(fields | dict(config.arguments)))
    except (TypeError, ValueError) as error:
        raise CometError(f"--set: {error}", exit_code=2) from None


class LiveLine(TrainerCallback):
    """One bar with the parts of the loss, on a terminal only."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        shown = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name in ("kd", "hard", "attention")}
        if shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


class KeepBest(TrainerCallback):
    """Validates after every epoch, remembers the weights nearest to the teacher, stops when nothing gets better."""

    def __init__(self, trainer: DistillationTrainer, start: Validation, patience: int) -> None:
        self.trainer = trainer
        self.patience = patience
        self.worse = 0
        self.remember(start, 0)

    def remember(self, validation: Validation, step: int) -> None:
        student: Any = self.trainer.accelerator.unwrap_model(self.trainer.model).student
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
        self.validation = self.latest = validation
        self.step = step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.latest = self.trainer.validate()
        tqdm.write(f"epoch {state.epoch:.3g}: {self.latest}", file=sys.stderr)
        if self.latest.distance < self.validation.distance:
            self.remember(self.latest, state.global_step)
            self.worse = 0
        else:
            self.worse += 1
            control.should_training_stop |= self.worse >= self.patience


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
    (folder / "README.md").write_text(model_card(caches, config.recipe, result), encoding="utf-8")
    readable = (folder / "README.md").stat().st_mode  # temporary folders and safetensors are private by default
    for path in folder.iterdir():
        path.chmod(readable)
    folder.chmod(readable | (readable & 0o444) >> 2)
    try:
        folder.rename(config.output)
    except OSError as error:
        raise CometError(f"{config.output}: came to exist during the training; the student lies in {folder}") from error
