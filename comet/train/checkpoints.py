"""Checkpoints of a training, in a folder beside the student's: written now and then, taken only when whole.

Each holds what transformers' Trainer saves (weights, optimiser, schedule, random states, step), the best student so
far, and last a list of all files with their sizes and SHA-256. A checkpoint without a list that matches was cut off
and is never taken.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from cache_tools.errors import CometError
from cache_tools.store.ledger import file_record
from cache_tools.store.records import read_checked, with_checksum, write_durably
from comet.train.callbacks import KeepBest
from comet.train.distributed import Processes

RUN, CHOSEN, RUNS = "run.json", "chosen.json", "runs"
COMPLETE, BEST = "complete.json", "best.safetensors"
KEPT = 2


class Checkpoints:
    """The folder `OUTPUT.checkpoints` of one training, held by one process at a time.

    Of several processes the first one holds it, for all. Raises CometError on creation when another training holds
    it, when an earlier one lies there and `resume` is False, when there is nothing to resume, or when it was begun with
    other settings (`run`, plain JSON).
    """

    def __init__(self, output: Path, run: dict[str, Any], resume: bool, processes: Processes | None = None) -> None:
        self.folder = output.with_name(f"{output.name}.checkpoints")
        self.processes = processes or Processes()
        self.lock = filelock.FileLock(self.folder / "lock")
        self.processes.from_first(lambda: self._claim(run, resume))

    def _claim(self, run: dict[str, Any], resume: bool) -> None:
        newest = newest_checkpoint(self.folder)
        if resume and newest is None:
            raise CometError(f"--resume: no whole checkpoint in {self.folder}; begin without --resume", exit_code=2)
        if not resume and newest is not None:
            raise CometError(
                f"{self.folder}: an earlier training was not finished; go on with it by --resume, or remove the folder",
                exit_code=2,
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(blocking=False)
        except filelock.Timeout:
            raise CometError(f"{self.folder}: another process is training there; choose another --output") from None
        if resume:
            earlier = read_checked(self.folder / RUN)
            names = run | earlier
            if changed := [
                f"{n}: {earlier.get(n)} before, {run.get(n)} now" for n in names if earlier.get(n) != run.get(n)
            ]:
                self.lock.release()
                raise CometError(
                    f"--resume: the training in {self.folder} was begun differently ({'; '.join(changed)}); give the "
                    "options it was begun with",
                    exit_code=2,
                )
        else:
            for name in (RUN, CHOSEN):  # of a training that was killed before its first checkpoint
                (self.folder / name).unlink(missing_ok=True)
            write_durably(self.folder / RUN, with_checksum(run))

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        return self.processes.from_first(lambda: newest_checkpoint(self.folder))

    def frozen(self, choose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was chosen when the training began, or `choose()` if it begins now."""

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
        if not self.processes.first:
            return
        if newest_checkpoint(self.folder) is None:  # nothing to go on from
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    def remove(self, output: Path) -> None:
        """Removes all checkpoints, once the student is safe. What a `report_to` of the trainer wrote goes to
        `OUTPUT.runs`."""
        if (self.folder / RUNS).exists():
            (self.folder / RUNS).rename(output.with_name(f"{output.name}.{RUNS}"))
        shutil.rmtree(self.folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((path for path in found if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether the checkpoint's list is there and every file of it is as listed."""
    try:
        listed = read_checked(checkpoint / COMPLETE)["files"]
        return all(file_record((checkpoint / n).read_bytes()).sha256 == digest for n, digest in listed.items())
    except (CometError, OSError):
        return False


class SaveCheckpoints(TrainerCallback):
    """Has a checkpoint written every so many minutes, and a last one where the training is asked to `stop`; completes
    each with the best student and the list of files. Of several processes each may be asked, and all stop.

    Never at the last step of an epoch before its validation, which belongs to it, and never at the last step of all.
    """

    def __init__(self, best: KeepBest, minutes: float, processes: Processes | None = None) -> None:
        self.best = best
        self.seconds = minutes * 60
        self.processes = processes or Processes()
        self.last = time.monotonic()
        self.due = self.stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = self.processes.first and time.monotonic() - self.last >= self.seconds
        self.due, self.stop = self.processes.any(due, self.stop)
        within = not float(state.epoch).is_integer() and state.global_step < state.max_steps
        control.should_save |= within and (self.due or self.stop)
        control.should_training_stop |= self.stop

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        whole, over = float(state.epoch).is_integer(), state.global_step >= state.max_steps
        control.should_save |= whole and not over and (self.due or self.stop)
        if self.stop and not whole and not over:  # it is saved, and goes on in the middle of this epoch
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.wait()  # for the random states of the others
        if self.processes.first:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(self.best.weights, folder / BEST)
            (folder / "best.json").write_text(json.dumps(self.best.to_json()), encoding="utf-8")
            files = {p.name: file_record(p.read_bytes()).sha256 for p in sorted(folder.iterdir()) if p.name != COMPLETE}
            (folder / COMPLETE).unlink(missing_ok=True)
            write_durably(folder / COMPLETE, with_checksum({"files": files}))
        self.last = time.monotonic()


def restore_best(best: KeepBest, checkpoint: Path) -> None:
    state = json.loads((checkpoint / "best.json").read_text(encoding="utf-8"))
    best.restore(state, load_file(checkpoint / BEST))
