"""From caches to a student folder: the whole of `comet-train` as one function."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments, XLMRobertaForMaskedLM
from transformers.integrations.integration_utils import get_available_reporting_integrations

from cache_tools.errors import CometError
from cache_tools.interrupts import signals_handled_by
from cache_tools.settings import LocalCache
from cache_tools.store.reader import Cache, open_cache
from comet.output import make_report, options_file, options_path, report_path, runs_path, save_student
from comet.report.analysis import first_row
from comet.report.summary import announcement, sample_row
from comet.settings import Distilled, StudentConfig, run_identity
from comet.student.model import StudentShape, choose_shape, earlier_student, new_student, shape_of
from comet.student.vocabulary import StudentVocabulary, full_vocabulary, student_tokenizer, trimmed_vocabulary
from comet.train.callbacks import KeepBest, LiveLine
from comet.train.checkpoints import KEPT, Checkpoints, SaveCheckpoints, restore_best
from comet.train.dataset import CacheRows, collate, in_vocabulary, require_compatible, shards_of, teacher_mass_outside
from comet.train.distiller import Distiller
from comet.train.distributed import Processes
from comet.train.trainer import DistillationTrainer, choose_bf16
from comet.train.validation import validation_rows


def open_for_training(places: Sequence[str | Path], local: LocalCache | None = None) -> list[Cache]:
    """The caches in these folders or at these URLs, complete and of one teacher; shards from a URL are read as they
    are needed, and kept in `local`. Raises CometError otherwise."""
    caches = [open_at(str(place), local) for place in places]
    for cache in caches:
        cache.require_text()
        cache.require_complete()
    require_compatible(caches)
    return caches


def open_at(place: str, local: LocalCache | None) -> Cache:
    if "://" not in place:
        return open_cache(place)
    from cache_tools.sharing.remote_shards import open_remote
    from cache_tools.sharing.retry import RetryPolicy

    if local is None:
        raise CometError(f"{place}: a URL needs a local cache to keep shards in", exit_code=2)
    return open_remote(place, local, RetryPolicy())


def distill(
    caches: Sequence[Cache], config: StudentConfig, say: Callable[[str], None] = lambda line: None
) -> Distilled:
    """Trains a student from caches and writes it to `config.output`, a page about it to `OUTPUT.html` and its options
    to `OUTPUT.toml`; none may exist. `say` is told what begins. Under torchrun all processes call this, with the same
    arguments.

    Raises CometError when the output exists, the caches hold too little, or the training diverges.
    """
    beside = (report_path(config.output), options_path(config.output), runs_path(config.output))
    for path in (config.output, *beside):
        if path.exists():
            raise CometError(f"{path}: exists; choose another --output or remove it first", exit_code=2)
    for cache in caches:
        cache.require_text()
    training, validation = shards_of(caches, "train"), shards_of(caches, "validation")
    if not validation:
        raise CometError(f"{caches[0].name}: no validation rows, so nothing could be said of a student; give more text")
    vocabulary = choose_vocabulary(config.vocabulary, caches)
    shape, student = begin_student(config, caches, vocabulary)
    distiller = Distiller(student, caches[0].recipe, config.objective, vocabulary)
    arguments = training_arguments(config, shape)  # also meets the other processes
    processes = Processes()
    arguments.per_device_train_batch_size = share_of_batch(arguments.per_device_train_batch_size, processes)
    say = say if processes.first else no_one

    def give_up() -> None:
        for cache in caches:
            cache.close()

    tokenizer = student_tokenizer(caches[0], vocabulary)
    identity = run_identity(config, caches) | {"processes": processes.count}
    with Checkpoints(config.output, identity, config.resume, processes) as checkpoints:
        outside = teacher_mass_outside(validation, vocabulary) if vocabulary.trimmed else None
        say(announcement(caches[0], distiller, shape, vocabulary, outside))
        for cache in caches:
            if cache.shard_files:
                say(cache.shard_files.described)
        arguments.output_dir = str(checkpoints.folder)
        trainer = DistillationTrainer(
            distiller,
            arguments,
            CacheRows(training, arrays_needed(caches[0], distiller, vocabulary)),
            validation_rows(validation),
            collator=lambda arrays: in_vocabulary(collate(arrays), vocabulary),
            language_alpha=config.language_alpha,
            processes=processes,
        )
        say(sample_row(first_row(distiller, training, tokenizer, arguments.device, trainer.collator)))
        best = KeepBest(trainer, config.objective.patience)
        chosen = checkpoints.frozen(
            lambda: {"bf16": choose_bf16(config.dtype, distiller, trainer.a_batch(), arguments.device)}
        )
        distiller.bf16 = chosen["bf16"]
        say(f"the body trains in {'bfloat16' if distiller.bf16 else 'float32'}" + described_processes(processes))
        try:
            seconds = train(trainer, best, checkpoints, config.save_minutes, say, give_up)
        except BaseException:
            give_up()
            raise
        finally:
            trainer.rows.expect([])  # ends reading ahead
        student.load_state_dict(best.weights)
        result = Distilled(
            output=config.output,
            shape=shape,
            vocabulary=vocabulary,
            parameters=sum(p.numel() for p in student.parameters()),
            teacher_parameters=caches[0].recipe.teacher_parameters,
            before=best.start,
            after=best.validation,
            steps=trainer.state.global_step,
            best_step=best.step,
            seconds=seconds,
        )
        if processes.first:
            report = make_report(trainer, best, caches, config, result)
            save_student(student, caches, config, result)
            with report_path(config.output).open("x", encoding="utf-8") as file:
                file.write(report)
            with options_path(config.output).open("x", encoding="utf-8") as file:
                file.write(options_file(caches, config, shape, distiller.bf16))
            checkpoints.remove(keep=runs_path(config.output))
        processes.wait()
    return result


def train(
    trainer: DistillationTrainer,
    best: KeepBest,
    checkpoints: Checkpoints,
    save_minutes: float,
    say: Callable[[str], None],
    give_up: Callable[[], None],
) -> float:
    """Trains from the start or the newest checkpoint to the end. Returns the seconds it took. `give_up` is called when
    a second signal ends it there and then.

    Raises CometError when a signal stopped it or the loss is no number any more.
    """
    newest = checkpoints.newest()
    if newest is None:
        best.begin()
    else:
        restore_best(best, newest)
        say(f"going on after step {newest.name.split('-')[1]}")
    saver = SaveCheckpoints(best, save_minutes, trainer.processes)
    trainer.remove_callback(PrinterCallback)
    for callback in (LiveLine(), best, saver):
        trainer.add_callback(callback)
    started = time.monotonic()
    with stop_on_signal(saver, checkpoints.folder, give_up):
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if saver.stop and not best.gives_up and trainer.state.global_step < trainer.state.max_steps:
        raise CometError(f"stopped after step {trainer.state.global_step}; run again with --resume to go on")
    if best.measured_at < trainer.state.global_step:
        trainer.evaluate()
    if best.step == 0 and not best.latest.cross_entropy < float("inf"):
        raise CometError("the training diverged: the validation loss is not finite; use a lower --learning-rate")
    return time.monotonic() - started


@contextmanager
def stop_on_signal(saver: SaveCheckpoints, folder: Path, give_up: Callable[[], None]) -> Iterator[None]:
    """At SIGINT or SIGTERM a checkpoint is written after the step in work, and the training ends; a second one raises
    CometError there and then."""

    def request(number: int, frame: FrameType | None) -> None:
        if saver.stop:
            give_up()
            raise CometError(f"stopped at once; --resume goes on from the last checkpoint in {folder}")
        saver.stop = True
        if saver.processes.first:
            tqdm.write("stopping after a last checkpoint (once more to stop at once)", file=sys.stderr)

    with signals_handled_by(request):
        yield


def no_one(line: str) -> None:
    """Is told and keeps it."""


def share_of_batch(batch_size: int, processes: Processes) -> int:
    """Rows of a step that fall to each process. Raises CometError when they do not come out even."""
    if batch_size % processes.count:
        raise CometError(
            f"--batch-size {batch_size}: not a multiple of {processes.count} processes, which share it; choose one",
            exit_code=2,
        )
    return batch_size // processes.count


def described_processes(processes: Processes) -> str:
    return f", in {processes.count} processes that share each batch" if processes.count > 1 else ""


def arrays_needed(cache: Cache, distiller: Distiller, vocabulary: StudentVocabulary) -> list[str]:
    """The arrays of the cache that a training reads."""
    of_all, of_seen = {"tail_logmass", "entropy"}, {"tail_logmass_seen", "entropy_seen"}
    unused = {"row_key"} | (of_all if vocabulary.trimmed else of_seen)
    unused |= set() if distiller.matches_attention else {"attention"}
    return [name for name in cache.extent.arrays if name not in unused]


def choose_vocabulary(requested: str, caches: Sequence[Cache]) -> StudentVocabulary:
    """Raises CometError where the vocabulary cannot be trimmed."""
    return trimmed_vocabulary(caches) if requested == "trimmed" else full_vocabulary(caches[0].recipe)


def begin_student(
    config: StudentConfig, caches: Sequence[Cache], vocabulary: StudentVocabulary
) -> tuple[StudentShape, XLMRobertaForMaskedLM]:
    """The student at step 0. Raises CometError when it cannot be made, or an earlier one cannot go on with this."""
    dropout = config.objective.dropout
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


def training_arguments(config: StudentConfig, shape: StudentShape) -> TrainingArguments:
    """Raises CometError for a field that TrainingArguments does not have or refuses."""
    objective = config.objective
    fields: dict[str, Any] = {
        "num_train_epochs": config.epochs or objective.epochs,
        "max_steps": config.steps or -1,
        "per_device_train_batch_size": config.batch_size or objective.batch_size,
        "per_device_eval_batch_size": 32,
        "learning_rate": config.learning_rate or objective.peak_learning_rate(shape.hidden),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": KEPT,
        "eval_strategy": "steps" if config.validate_steps else "epoch",
        "eval_steps": config.validate_steps,
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }
    try:
        arguments = TrainingArguments(**(fields | dict(config.arguments)))
    except (TypeError, ValueError) as error:
        raise CometError(f"--set: {error}", exit_code=2) from None
    there = get_available_reporting_integrations()
    if absent := [name for name in arguments.report_to or [] if name not in there]:
        raise CometError(
            f"--set report_to={absent[0]}: expected {', '.join(there) or 'none, since no such package is installed'}; "
            "install its package, or leave it away",
            exit_code=2,
        )
    if arguments.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise CometError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they did not find each other and would train "
            f"{os.environ['WORLD_SIZE']} students; leave --set use_cpu away, or start without torchrun"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process trains on one GPU; for several there is torchrun
    return arguments
