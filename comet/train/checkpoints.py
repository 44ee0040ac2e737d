"""Checkpoints of a training, in a folder beside the student's.

Each holds the files of transformers' Trainer (weights, optimiser, schedule, random states, step), the best student so
far, and, written last, the SHA-256 of every file. A checkpoint that does not match this list was cut off: a training
never resumes from it. Of a finished training whose student could not be written there is one with the best student
alone; the disk space for it is reserved from the start.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
from transformers import TrainerCallback, TrainerState

from cache_tools.errors import CometError
from cache_tools.places.destinations import reason, writing
from cache_tools.store.ledger import file_record
from cache_tools.store.records import read_checked, sync_file, with_checksum, write_durably
from comet.train.callbacks import KeepBest
from comet.train.distributed import Processes
from comet.train.trainer import writing_checkpoint

RUN, CHOSEN, RUNS, COMPLETE = "run.json", "chosen.json", "runs", "complete.json"
LOCK, ROOM, STATE = "lock", "room", "trainer_state.json"
BESIDE_WEIGHTS = 2**20  # bytes of the other files of a finished training
CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # some file systems of networks
NAME = re.compile(r"checkpoint-(\d{1,18})")
KEPT = 2
OF_CHECKPOINTS = ("save_strategy", "save_steps", "save_total_limit")
"""Settings of SaveCheckpoints, which the Trainer does not get."""


class Checkpoints:
    """The folder of a training's checkpoints, locked for one training; of several processes the first one locks it.

    Raises CometError on creation if another training uses the folder, if it holds an earlier one and `resume` is False,
    if there is nothing to resume, or if the earlier one was begun with other settings (`run`, plain JSON).
    """

    def __init__(self, folder: Path, run: dict[str, Any], resume: bool, processes: Processes | None = None) -> None:
        self.folder = folder
        self.processes = processes or Processes()
        self.lock = filelock.FileLock(self.folder / LOCK)
        self.processes.from_first(lambda: self._claim(run, resume))

    def _claim(self, run: dict[str, Any], resume: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(blocking=False)
        except filelock.Timeout:
            raise CometError(f"{self.folder}: another process is training here; choose another --output") from None
        try:
            self._begin(run, resume)
        except BaseException:
            self._release()
            raise

    def _begin(self, run: dict[str, Any], resume: bool) -> None:
        newest = newest_checkpoint(self.folder)
        if resume and newest is None:
            raise CometError(f"--resume: no complete checkpoint in {self.folder}; omit --resume", exit_code=2)
        if not resume and newest is not None:
            raise CometError(
                f"{self.folder}: an earlier training was not finished; continue it with --resume, or remove the folder",
                exit_code=2,
            )
        if resume:
            earlier = read_checked(self.folder / RUN)
            changed = [name for name in run | earlier if earlier.get(name) != run.get(name)]
            if changed:
                if "steps" in changed:
                    changed = [name for name in changed if name != "epochs"]  # which follow if no steps are given
                differences = "; ".join(
                    f"{name}: {_given(earlier.get(name))} before, {_given(run.get(name))} now" for name in changed
                )
                raise CometError(
                    f"--resume: the training in {self.folder} was begun differently ({differences}); give the options "
                    "it was begun with, or remove that folder to start over without --resume",
                    exit_code=2,
                )
        else:
            for name in (RUN, CHOSEN):  # left by a training that was killed before its first checkpoint
                (self.folder / name).unlink(missing_ok=True)
            write_durably(self.folder / RUN, with_checksum(run))

    def _release(self) -> None:
        """Release the lock, and remove the folder if nothing else is in it; NFS and Windows keep it until then."""
        with suppress(PermissionError):  # of Windows, which removes no open file; there filelock does it on release
            (self.folder / LOCK).unlink(missing_ok=True)
        self.lock.release()
        with suppress(OSError):
            self.folder.rmdir()

    def reserve(self, size: int) -> None:
        """Reserve disk space for `size` bytes of weights, where the system and the disk can do that. Raises CometError
        if there is not enough."""
        if not self.processes.first or not hasattr(os, "posix_fallocate"):
            return
        try:
            with (self.folder / ROOM).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size + BESIDE_WEIGHTS)
        except OSError as error:
            if error.errno in CANNOT_RESERVE:
                return
            raise CometError(
                f"--output: no room for a student of {size / 1e6:,.0f} MB in {self.folder} ({reason(error)}); make "
                "room, or choose another --output",
                exit_code=2,
            ) from error

    def keep_finished(self, best: KeepBest, state: TrainerState) -> None:
        """Write the best student and the state of a finished training, from which `resume` only saves it again."""
        (self.folder / ROOM).unlink(missing_ok=True)
        folder = self.folder / f"checkpoint-{state.global_step}"
        if is_whole(folder):
            return  # the student comes from there, and was to be saved again
        with writing(folder, "neither the student nor a last checkpoint could be; make room, then run again"):
            folder.mkdir(exist_ok=True)
            state.save_to_json(str(folder / STATE))
            best.save(folder)
            seal(folder, finished=True)

    def newest(self) -> Path | None:
        return self.processes.from_first(lambda: newest_checkpoint(self.folder))

    def frozen(self, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the choice made when the training began, or make it by `choose()` if it begins now."""

        def recall() -> dict[str, Any]:
            path = self.folder / CHOSEN
            if path.exists():
                return read_checked(path)
            chosen = choose()
            write_durably(path, with_checksum(chosen))
            return chosen

        return self.processes.from_first(recall)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        if self.processes.first:
            (self.folder / ROOM).unlink(missing_ok=True)
            if newest_checkpoint(self.folder) is None:  # nothing to resume
                self._clear()
            self._release()

    def remove(self, runs: Path) -> None:
        """Remove all checkpoints, once the student is saved; move logs of `report_to` to the path `runs`."""
        if (self.folder / RUNS).exists():
            (self.folder / RUNS).rename(runs)
        self._clear()

    def _clear(self) -> None:
        """Remove all in the folder but the lock: no other training begins here before it is empty."""
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                with suppress(OSError):
                    path.unlink()


def _given(value: object) -> str:
    return "not given" if value is None else str(value)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint."""
    return next((path for path in _checkpoints(folder) if is_whole(path)), None)


def _checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints, whole or not, the newest first."""
    steps = {path: NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*")}
    found = {path: int(name[1]) for path, name in steps.items() if name is not None}
    return sorted(found, key=lambda path: found[path], reverse=True)


def seal(checkpoint: Path, finished: bool = False) -> None:
    """Write the list of a checkpoint's files, which makes it whole, once all of them are on the disk: then an earlier
    checkpoint may go."""
    files = {}
    for path in sorted(path for path in checkpoint.iterdir() if path.name != COMPLETE):
        sync_file(path)
        files[path.name] = file_record(path.read_bytes()).sha256
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    write_durably(checkpoint / COMPLETE, with_checksum({"files": files, "finished": finished}))


def remove_all_but_newest(checkpoint: Path, count: int) -> None:
    """Keep this checkpoint, which was just sealed, and the newest sealed ones before it, `count` in all. Remove earlier
    ones, what a crash cut off, and later ones, which were damaged, since training did not continue from them."""
    found = _checkpoints(checkpoint.parent)
    sealed = [path for path in found[found.index(checkpoint) :] if (path / COMPLETE).exists()]
    for path in found:
        if path not in sealed[:count]:
            shutil.rmtree(path)


def is_finished(checkpoint: Path) -> bool:
    """Return whether the training of a whole checkpoint was finished, so that only its student is to be saved."""
    return bool(read_checked(checkpoint / COMPLETE)["finished"])


def is_whole(checkpoint: Path) -> bool:
    """Return whether the checkpoint has its list of files, and every file matches it."""
    try:
        listed = read_checked(checkpoint / COMPLETE)["files"]
        return all(file_record((checkpoint / n).read_bytes()).sha256 == digest for n, digest in listed.items())
    except (CometError, OSError):
        return False


class SaveCheckpoints(TrainerCallback):
    """Write a checkpoint every few minutes, and every few steps or epochs if asked for, and a last one when `stop` is
    set, in any process; then all stop.

    Adds the best student and the list of files to the Trainer's own; then all but the newest `kept` go. At the last
    step of an epoch a checkpoint is written after the validation, which it must hold, and at the last step of all
    never.
    """

    def __init__(
        self,
        best: KeepBest,
        minutes: float,
        processes: Processes | None = None,
        every_steps: int | None = None,
        every_epoch: bool = False,
        kept: int = KEPT,
    ) -> None:
        self.best, self.kept = best, kept
        self.seconds = minutes * 60
        self.every_steps, self.every_epoch = every_steps, every_epoch
        self.processes = processes or Processes()
        self.last = time.monotonic()
        self.due = self.stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = self.processes.first and time.monotonic() - self.last >= self.seconds
        due |= self.every_steps is not None and state.global_step % self.every_steps == 0
        self.due, self.stop = self.processes.any(due, self.stop)
        within = not float(state.epoch).is_integer() and state.global_step < state.max_steps
        control.should_save |= within and (self.due or self.stop)
        control.should_training_stop |= self.stop

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        whole, over = float(state.epoch).is_integer(), state.global_step >= state.max_steps
        control.should_save |= whole and not over and (self.due or self.stop or self.every_epoch)
        if self.stop and not whole and not over:  # saved, and resumed in the middle of this epoch
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.wait()  # for the random states of the others
        if self.processes.first:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with writing_checkpoint(folder):
                self.best.save(folder)
                seal(folder)
                remove_all_but_newest(folder, self.kept)
        self.last = time.monotonic()
