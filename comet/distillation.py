"""From caches to a student folder: the whole of `comet-train` as one function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm
from transformers import PreTrainedModel, PrinterCallback, TrainerState, TrainingArguments

from cache_tools.errors import CometError, Stopped, noop
from cache_tools.interrupts import stop_on_signal
from cache_tools.models import is_out_of_memory
from cache_tools.places.destinations import writing
from comet.output import save_outputs
from comet.paths import checkpoints_path, require_free, runs_path
from comet.preparation import Preparation, Sources, opened, prepare, require_inputs, training_arguments
from comet.report.analysis import AnnotatedRow, look_at_rows
from comet.report.summary import announcement, sample_row
from comet.settings import Distilled, StudentConfig
from comet.student.model import begins_with
from comet.train.callbacks import KeepBest, LiveLine
from comet.train.checkpoints import KEPT, STATE, Checkpoints, SaveCheckpoints, is_finished
from comet.train.dataset import CacheRows, CacheShard, arrays_to_read, teacher_mass_outside
from comet.train.distiller import Distiller
from comet.train.distributed import Processes
from comet.train.trainer import DistillationTrainer, choose_bf16
from comet.train.validation import validation_rows

Say = Callable[[str], object]


def distill(caches: Sources, config: StudentConfig, say: Say = noop) -> Distilled:
    """Train a student from caches, or from the folders that they are in.

    Writes it to `config.output`, a report to `OUTPUT.html` and the options to `OUTPUT.toml`; none may exist. `say` is
    called with each line of progress. Under torchrun all processes call this, with the same arguments. Caches at URLs
    need `open_for_training`, which takes the local cache for their shards.

    Raises CometError if an output exists or cannot be created, the caches or options do not fit, the training is
    stopped, it diverges, or memory or disk space runs out.
    """
    caches = opened(caches)
    require_inputs(caches, config)
    require_free(config.output)
    prepared, student = prepare(caches, config)
    distiller = Distiller(student, prepared.recipe, config.objective, prepared.vocabulary)
    arguments = training_arguments(prepared.config, prepared.shape)  # also connects to the other processes
    processes = Processes()
    arguments.per_device_train_batch_size = processes.share_of(arguments.per_device_train_batch_size)
    say = say if processes.first else noop
    identity = prepared.identity | {"processes": processes.count}
    with (
        Checkpoints(checkpoints_path(config.output), identity, config.resume, processes) as checkpoints,
        enough_memory(arguments, processes.count),
    ):
        checkpoints.reserve(sum(tensor.nbytes for tensor in student.state_dict().values()))
        arguments.output_dir = str(checkpoints.folder)
        trainer = DistillationTrainer(
            distiller,
            arguments,
            CacheRows(
                prepared.training,
                arrays_to_read(prepared.recipe, distiller.matches_attention, prepared.vocabulary.trimmed),
            ),
            validation_rows(prepared.validation),
            collator=prepared.collator,
            language_alpha=config.language_alpha,
            processes=processes,
        )
        _announce(prepared, trainer, distiller, say)
        best = KeepBest(trainer, config.objective)

        def choose() -> dict[str, bool]:
            if config.dtype == "auto" and arguments.device.type == "cpu":
                say("measuring whether bfloat16 is faster here (--dtype float32 skips this)")
            return {"bf16": choose_bf16(config.dtype, distiller, trainer.a_batch(), arguments.device)}

        chosen = checkpoints.frozen(choose)
        distiller.bf16 = chosen["bf16"]
        shared = f", in {processes.count} processes that share each batch" if processes.count > 1 else ""
        say(f"the student trains in {'bfloat16' if distiller.bf16 else 'float32'}{shared}")
        row_before = _first_row(prepared, trainer, distiller, prepared.validation)
        _train(trainer, best, checkpoints, prepared, say)
        with _kept_unless_saved(trainer, best, checkpoints, prepared):
            student.load_state_dict(best.weights)
            row_after = _first_row(prepared, trainer, distiller, prepared.validation)
            result = _result(prepared, student, best, trainer, row_before, row_after)
            if processes.first:
                with writing(result.output, "make room"):
                    save_outputs(prepared, trainer, best, student, result)
        if processes.first:
            checkpoints.remove(runs_path(result.output))
        processes.wait()
    return result


@contextmanager
def _kept_unless_saved(
    trainer: DistillationTrainer, best: KeepBest, checkpoints: Checkpoints, prepared: Preparation
) -> Iterator[None]:
    """Keep the trained student among the checkpoints if measuring or saving it fails, or is stopped.

    The first signal while it is being kept is ignored.
    """
    kept = f"the trained student is kept in {checkpoints.folder}: run again with --resume"
    at_once = f"stopped at once; run again, with --resume if there is still a {checkpoints.folder}"
    try:
        with stop_on_signal(None, "stopped before the student was saved", prepared.close):
            yield
    except BaseException as error:
        if trainer.processes.first:
            with stop_on_signal(noop, at_once):
                checkpoints.keep_finished(best, trainer.state)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{error}; {kept}") from error
        if isinstance(error, CometError):
            raise CometError(f"{error}; {kept}", exit_code=error.exit_code) from error
        raise


@contextmanager
def enough_memory(arguments: TrainingArguments, processes: int) -> Iterator[None]:
    """Raise CometError, with the options that help, if memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows = arguments.per_device_train_batch_size
        half = max(rows // 2, 1) * processes
        raise CometError(
            f"out of memory with {rows} rows at a time on {arguments.device.type}; use a smaller --batch-size, such as "
            f"{half} with --set gradient_accumulation_steps=2, or --set activation_checkpointing=true"
        ) from error


def _train(
    trainer: DistillationTrainer, best: KeepBest, checkpoints: Checkpoints, prepared: Preparation, say: Say
) -> None:
    """Train from the start or the newest checkpoint to the end.

    The first SIGINT or SIGTERM writes a checkpoint after the current step and ends the training; the second ends it at
    once, also while a server does not respond. Raises CometError if stopped, or if the loss is no longer finite.
    """
    newest = checkpoints.newest()
    if newest is None:
        best.begin()
    else:
        best.restore(newest)
        say(f"resuming after step {newest.name.split('-')[1]}")
        if is_finished(newest):
            trainer.state = TrainerState.load_from_json(str(newest / STATE))
            return
    settings = dict(prepared.config.arguments)
    every_epoch = settings.get("save_strategy") == "epoch"
    saver = SaveCheckpoints(
        best, prepared.config.save_minutes, trainer.processes, settings.get("save_steps"), every_epoch,
        settings.get("save_total_limit", KEPT),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    for callback in (LiveLine(), best, saver):
        trainer.add_callback(callback)

    def stop() -> None:
        saver.stop = True
        if saver.processes.first:
            tqdm.write("stopping after a last checkpoint (interrupt again to stop at once)", file=sys.stderr)

    at_once = f"stopped at once; --resume continues from the last checkpoint in {checkpoints.folder}"
    try:
        try:
            with stop_on_signal(stop, at_once, prepared.close):
                trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        except BaseException:
            prepared.close()
            raise
        if saver.stop and not best.gives_up and trainer.state.global_step < trainer.state.max_steps:
            raise Stopped(f"stopped after step {trainer.state.global_step}; run again with --resume to continue")
        if best.measured_at < trainer.state.global_step:
            trainer.evaluate()
    finally:
        trainer.rows.expect([])  # ends reading ahead; waits for the current shard unless its cache is closed
    if best.step == 0 and not best.latest.cross_entropy < float("inf"):
        raise trainer.diverged("the validation loss is not finite")


def _announce(prepared: Preparation, trainer: DistillationTrainer, distiller: Distiller, say: Say) -> None:
    vocabulary = prepared.vocabulary
    outside = teacher_mass_outside(prepared.validation, vocabulary) if vocabulary.trimmed else None
    say(announcement(prepared.caches, distiller, prepared.shape, vocabulary, outside))
    say(f"it begins with {begins_with(prepared.config.init, prepared.shape, prepared.caches)}")
    for cache in prepared.caches:
        if cache.shard_files:
            say(cache.shard_files.described)
    say(sample_row(_first_row(prepared, trainer, distiller, prepared.training)))


def _first_row(
    prepared: Preparation, trainer: DistillationTrainer, distiller: Distiller, shards: list[CacheShard]
) -> AnnotatedRow:
    """Return the first row of these shards, with the predictions of teacher and student."""
    _, rows = look_at_rows(distiller, shards, prepared.tokenizer, trainer.args.device, prepared.collator)
    return rows[0]


def _result(
    prepared: Preparation,
    student: PreTrainedModel,
    best: KeepBest,
    trainer: DistillationTrainer,
    row_before: AnnotatedRow,
    row_after: AnnotatedRow,
) -> Distilled:
    caches = {shard.cache.name: shard.cache for shard in prepared.validation} if len(prepared.caches) > 1 else {}
    rows = {name: validation_rows([s for s in prepared.validation if s.cache is caches[name]]) for name in caches}
    return Distilled(
        output=prepared.config.output,
        shape=prepared.shape,
        begins_with=begins_with(prepared.config.init, prepared.shape, prepared.caches),
        vocabulary=prepared.vocabulary,
        parameters=sum(p.numel() for p in student.parameters()),
        teacher_parameters=prepared.recipe.teacher_parameters,
        before=best.start,
        after=best.validation,
        row_before=row_before,
        row_after=row_after,
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        best_step=best.step,
        seconds=best.seconds,
        of_each_cache={name: trainer.validate(of_one) for name, of_one in rows.items()},
    )
