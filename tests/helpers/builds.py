"""Real processes of our commands, and files compared byte by byte: what the end-to-end tests share.

Each process is forked from a server that has torch and transformers loaded already, which saves five seconds of
importing a time. After the fork it runs `python -m cache_tools …` or `python -m comet …` as a fresh interpreter would.
"""

import hashlib
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import zarr
from numpy.typing import NDArray

from cache_tools.store.recipe import GROUPS
from helpers import REPOSITORY

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
}
COMMANDS = ["cache_tools.build.build", "cache_tools.cli.main", "comet.cli.train", "comet.distillation"]
MODELS = [f"transformers.models.{name}.modeling_{name}" for name in ("xlm_roberta", "bert")]
PATIENCE = 120.0  # seconds until a process that should have ended is taken for stuck


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal that killed it), what it printed, its peak memory."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int = 0


class Running:
    """A process of a command at work, by default of `comet-cache`, its output in two files beside each other."""

    def __init__(
        self, arguments: list[str], log: Path, environment: dict[str, str] | None = None, module: str = "cache_tools",
        folder: Path = Path(),
    ) -> None:  # fmt: skip
        self.log = log
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir(parents=True)
        command = module, arguments, str(log), environment or {}, folder
        self.process = server().Process(target=run_command, args=command)
        self.process.start()

    def wait(self) -> Ended:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"still at work after {PATIENCE:g} s: {self.read('stderr')}")
        self.process.close()
        return Ended(code, self.read("stdout"), self.read("stderr"), int(self.read("peak") or 0))

    def read(self, name: str) -> str:
        path = self.log / name
        return path.read_text() if path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> Ended:
        """Sends the signal unless the process has already ended, and waits for the end."""
        if self.process.is_alive():
            os.kill(self.pid, number)
        return self.wait()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true while the process was alive; looks every millisecond."""
        limit = time.monotonic() + PATIENCE
        while self.process.is_alive() and time.monotonic() < limit:
            if condition():
                return True
            time.sleep(0.001)
        return condition()


@cache
def server() -> ForkServerContext:
    """The fork server, started at the first call. What it forks has one thread for computing and no network."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*COMMANDS, *MODELS, "helpers.builds"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def run_command(module: str, arguments: list[str], log: str, environment: dict[str, str], folder: Path) -> None:
    """In the new process: `python -m module arguments…` in `folder`, output and peak memory to files in `log`."""
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{log}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        Path(log, "peak").write_text(str(peak), encoding="ascii")


def build_arguments(out: Path, teacher: Path | str, text: Path | str, **options: object) -> list[str]:
    """`build …` for Kinyarwanda, of any teacher; an option `top_k=8` becomes `--top-k 8`, True one without a value."""
    pairs = {"lang": "kin", "teacher": teacher, "text": text, "out": out, "views": 1, "device": "cpu"} | options
    arguments = ["build"] if "weak_teacher" in options else ["build", "--weak-teacher"]
    for name, value in pairs.items():
        if value is not False:
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return arguments


def build(out: Path, teacher: Path | str, text: Path | str, log: Path, **options: object) -> Ended:
    return Running(build_arguments(out, teacher, text, **options), log).wait()


def build_whole(out: Path, teacher: Path | str, text: Path | str, log: Path, **options: object) -> Ended:
    """A build that succeeds without a word on stderr."""
    ended = build(out, teacher, text, log, **options)
    assert (ended.code, ended.stderr) == (0, "")
    return ended


def groups_of(folder: Path) -> dict[str, dict[str, NDArray]]:
    """Every array of a cache as plain zarr reads it."""
    root = zarr.open_group(folder, mode="r")
    groups = [*GROUPS, "vocabulary", *(["start"] if (folder / "start").exists() else [])]
    return {group: {name: array[...] for name, array in root[group].arrays()} for group in groups}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, hidden ones too, and an entry for every folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def assert_one_error_line(ended: Ended, code: int, *expected: str) -> None:
    """One line on stderr that starts with `error:` and holds the expected words, nothing on stdout, the exit code."""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: "), ended.stderr
    for words in expected:
        assert words in lines[0], f"{words!r} is not in {lines[0]!r}"
    assert ended.stdout == ""
    assert ended.code == code, ended.stderr
