"""Before the first step: open the caches, make the student, and fix everything that training does not change."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from cache_tools.errors import CometError, first_line
from cache_tools.places.urls import is_url, printable_url
from cache_tools.settings import LocalCache
from cache_tools.store.reader import Cache, open_cache
from cache_tools.store.recipe import Recipe
from comet.overlap import require_other_text
from comet.settings import StudentConfig, run_identity
from comet.student.family import StudentShape, family_of
from comet.student.model import earlier_student, new_student, shape_of
from comet.student.saved_tokenizer import save_student_tokenizer
from comet.student.shape import choose_shape
from comet.student.sizes import AUTO, DEFAULT_SIZE
from comet.student.start import start_cache
from comet.student.vocabulary import (
    StudentVocabulary,
    full_vocabulary,
    student_tokenizer,
    trimmed_vocabulary,
    why_not_trimmed,
)
from comet.train.arguments import try_optimiser
from comet.train.checkpoints import OF_CHECKPOINTS
from comet.train.dataset import CacheShard, Collator, held_recipe, require_compatible, shards_of, student_collator


@dataclass(frozen=True)
class Preparation:
    """The fixed inputs of a training.

    `recipe` is that of the caches, without signals that a copy lacks; `identity` holds the settings that a resumed
    training must share with the one it continues.
    """

    config: StudentConfig
    caches: tuple[Cache, ...]
    recipe: Recipe
    vocabulary: StudentVocabulary
    tokenizer: PreTrainedTokenizerBase
    shape: StudentShape
    identity: dict[str, Any]
    training: list[CacheShard]
    validation: list[CacheShard]

    def save_tokenizer(self, folder: Path) -> None:
        """Write the student's tokenizer. Raises CometError if the written one reads text differently from the
        teacher's."""
        inputs = family_of(self.recipe).model_inputs
        save_student_tokenizer(self.tokenizer, inputs, folder, self.caches, self.vocabulary)

    @property
    def collator(self) -> Collator:
        return student_collator(self.recipe, self.vocabulary)

    def close(self) -> None:
        """Stop waiting for shards from servers."""
        for cache in self.caches:
            cache.close()


NOT_A_FOLDER = ("start", "cache", "random")
"""The values of `--init` that name no earlier student."""

Sources = str | Path | Sequence[str | Path] | Sequence[Cache]
"""Caches, or the folders that they are in."""


def open_for_training(locations: Sequence[str | Path], local: LocalCache | None = None) -> list[Cache]:
    """Open the caches in these folders or at these URLs; shards from a URL are read on demand and kept in `local`.

    Raises CometError unless all caches are complete, with their text, of one teacher, and different ones.
    """
    if isinstance(locations, str | Path) or not locations:
        raise CometError(f"--cache {str(locations)[:80]}: expected a list of folders or URLs", exit_code=2)
    caches = [_open_at(str(location), local) for location in locations]
    for cache in caches:
        cache.require_text()
        cache.require_complete()
    require_compatible(caches)
    return caches


def _open_at(location: str, local: LocalCache | None) -> Cache:
    if not is_url(location):
        return open_cache(location)
    from cache_tools.sharing.remote_shards import open_remote
    from cache_tools.sharing.retry import RetryPolicy

    if local is None:
        raise CometError(
            f"{printable_url(location)}: a URL needs a local cache to keep shards in; pass `local`", exit_code=2
        )
    return open_remote(location, local, RetryPolicy())


def opened(caches: Sources) -> Sequence[Cache]:
    """Return these caches, opened by `open_for_training` if folders are given. Raises CometError as it does."""
    if isinstance(caches, str | Path):
        return open_for_training([caches])
    if isinstance(caches, Sequence) and caches and all(isinstance(one, str | Path) for one in caches):
        return open_for_training(cast("Sequence[str | Path]", caches))
    return cast("Sequence[Cache]", caches)


def require_inputs(caches: Sequence[Cache], config: StudentConfig) -> None:
    """Raise CometError unless these are caches, at least one, and settings."""
    if not isinstance(caches, Sequence) or not caches or not all(isinstance(cache, Cache) for cache in caches):
        raise CometError("caches: expected folders, or what open_for_training returns", exit_code=2)
    if not isinstance(config, StudentConfig):
        raise CometError(f"config: expected a StudentConfig, found {type(config).__name__}", exit_code=2)


def prepare(caches: Sequence[Cache], config: StudentConfig) -> tuple[Preparation, PreTrainedModel]:
    """Return the inputs of a training and the student at step 0.

    Raises CometError if the caches lack text or validation rows, if one trains on text that another holds out for
    validation, or if the student cannot be made.
    """
    for cache in caches:
        cache.require_text()
    require_compatible(caches)
    require_other_text(caches)
    training, validation = shards_of(caches, "train"), shards_of(caches, "validation")
    if not validation:
        raise CometError(f"{caches[0].name}: no validation rows to measure a student on; build a cache of more text")
    vocabulary = choose_vocabulary(config.vocabulary, caches)
    chosen = "trimmed" if vocabulary.trimmed else "full"
    config = replace(config, init=choose_init(config.init, caches), vocabulary=chosen)
    if config.student == AUTO and config.init in NOT_A_FOLDER:
        config = replace(config, student=DEFAULT_SIZE)
    if config.epochs is None and config.steps is None:
        config = replace(config, epochs=default_epochs(config, sum(shard.rows for shard in training)))
    shape, student = _begin_student(config, caches, vocabulary)
    preparation = Preparation(
        config=config,
        caches=tuple(caches),
        recipe=held_recipe(caches),
        vocabulary=vocabulary,
        tokenizer=student_tokenizer(caches[0], vocabulary),
        shape=shape,
        identity=run_identity(config, caches) | {"student": str(shape)},  # a file may have changed under its name
        training=training,
        validation=validation,
    )
    with tempfile.TemporaryDirectory(prefix="comet-tokenizer-") as folder:
        preparation.save_tokenizer(Path(folder))  # so that a training does not end with one that cannot be saved
    return preparation, student


def choose_vocabulary(requested: str, caches: Sequence[Cache]) -> StudentVocabulary:
    """Return the full or the trimmed vocabulary; `auto` is trimmed where that is possible. Raises CometError if it
    cannot be trimmed."""
    if requested == "trimmed" or (requested == "auto" and why_not_trimmed(caches) is None):
        return trimmed_vocabulary(caches)
    return full_vocabulary(caches[0].recipe)


def choose_init(requested: str, caches: Sequence[Cache]) -> str:
    """Return where the first weights come from; `auto` is the start where a cache has one, else the embeddings."""
    if requested != "auto":
        return requested
    return "cache" if start_cache(caches) is None else "start"


def _begin_student(
    config: StudentConfig, caches: Sequence[Cache], vocabulary: StudentVocabulary
) -> tuple[StudentShape, PreTrainedModel]:
    """Return the student at step 0. Raises CometError if it cannot be made, or if an earlier one does not fit."""
    dropout, recipe = config.objective.dropout, (start_cache(caches) or caches[0]).recipe
    if config.init in NOT_A_FOLDER:
        shape = choose_shape(config.student, recipe, len(vocabulary))
        return shape, new_student(shape, caches, vocabulary, dropout, config.seed, config.init)
    student = earlier_student(Path(config.init), caches, vocabulary, dropout)
    shape = shape_of(student, Path(config.init).name)
    if config.student != AUTO:
        asked = choose_shape(config.student, recipe, len(vocabulary))
        if replace(asked, name=shape.name) != shape:
            raise CometError(f"--student {config.student}: but --init {config.init} is {shape}; omit one", exit_code=2)
    return shape, student


def peak_learning_rate(config: StudentConfig, shape: StudentShape) -> float:
    """Return the peak learning rate: as given, or the objective's for a body that is random or has learnt before."""
    return config.learning_rate or config.objective.peak_learning_rate(shape.hidden, has_learnt(config))


def default_epochs(config: StudentConfig, rows: int) -> float:
    """Return the objective's number of epochs on `rows` training rows for a body that is random or has learnt
    before."""
    objective, accumulated = config.objective, dict(config.arguments).get("gradient_accumulation_steps", 1)
    steps = rows / ((config.batch_size or objective.batch_size) * accumulated)
    return float(objective.default_epochs(steps, has_learnt(config)))


def has_learnt(config: StudentConfig) -> bool:
    """Return whether a student begins with layers of its teacher or of an earlier student."""
    return config.init not in ("cache", "random")


def training_arguments(config: StudentConfig, shape: StudentShape) -> TrainingArguments:
    """Return transformers' arguments. Raises CometError for settings that do not fit together, and if the processes of
    torchrun are not connected."""
    objective, world_size = config.objective, int(os.environ.get("WORLD_SIZE", "1"))
    fields: dict[str, Any] = {
        "num_train_epochs": config.epochs or objective.epochs,
        "max_steps": config.steps or -1,
        "per_device_train_batch_size": config.batch_size or objective.batch_size,
        "per_device_eval_batch_size": 32,
        "learning_rate": peak_learning_rate(config, shape),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "steps" if config.validate_steps else "epoch",
        "eval_steps": config.validate_steps,
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": world_size > 1 and not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }
    settings = {name: value for name, value in config.arguments if name not in OF_CHECKPOINTS}
    if world_size == 1 and (alone := [name for name in settings if name.startswith("ddp_")]):
        raise CometError(f"--set {alone[0]}: only for several processes; start with torchrun", exit_code=2)
    try:
        arguments = TrainingArguments(**(fields | settings))
    except (TypeError, ValueError, ImportError) as error:
        raise CometError(f"--set: {first_line(error)}", exit_code=2) from error
    try_optimiser(arguments, config.arguments)
    if arguments.world_size != world_size:
        raise CometError(
            f"torchrun started {world_size} processes, but they are not connected and would train {world_size} "
            "students; omit --set use_cpu, or start without torchrun"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one GPU per process; torchrun starts a process for each
    return arguments
