"""Run commands against hostile caches and measure what they cost, each in a process forked from a warm one.

The warm process has everything imported, so time and memory are those of the work. A command may write only to its
cache and to the folder for temporary files, start no program, load no pickle and open no connection.

    python tests/attacks/running.py NAME    runs one attack alone
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import chunk_attacks
import click
import json_attacks
import path_attacks
import record_attacks
import start_attacks
import tokenizer_attacks
import value_attacks
from forging import Attack, sound_cache
from helpers.builds import server
from helpers.crashes import is_writing

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.cli.terminal import one_line_errors
from cache_tools.store.start import read_start, start_arrays
from comet.preparation import choose_vocabulary, open_for_training, prepare
from comet.settings import StudentConfig
from comet.student.vocabulary import student_tokenizer
from comet.train.dataset import CacheRows, collate, shards_of

TABLES = [
    table.ATTACKS
    for table in (
        json_attacks,
        record_attacks,
        chunk_attacks,
        path_attacks,
        value_attacks,
        start_attacks,
        tokenizer_attacks,
    )
]
ATTACKS: dict[str, Attack] = {name: attack for table in TABLES for name, attack in table.items()}
PATIENCE = 20.0  # seconds before a process counts as stuck
MORE_MEMORY = 300 * 10**6  # bytes above those of a sound cache, and
MOST_SECONDS = 2.0  # that an attack may cost
MOST_MEMORY = 4 * 2**30  # bytes of address space that it may take: a bomb must not hurt the machine
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}


@click.group()
def reading() -> None:
    """Do what `comet-train` does with a cache before its first step."""


@reading.command()
@click.argument("cache", type=click.Path(path_type=Path))
@one_line_errors
def train(cache: Path) -> None:
    """Read every array as batches, the vocabularies and tokenizers of a student, and all of the start, and make one."""
    (opened,) = open_for_training([cache])
    for group in ("train", "validation"):
        rows = CacheRows(shards_of([opened], group), opened.extent.arrays)
        for row in range(len(rows)):
            collate(rows.__getitems__([row]), opened.recipe)
    make_tokenizers(cache)
    for name in start_arrays(opened.recipe):
        read_start(opened, name)
    prepare([opened], StudentConfig(Path("student")))


@reading.command()
@click.argument("cache", type=click.Path(path_type=Path))
@one_line_errors
def tokenizer(cache: Path) -> None:
    """Read only the vocabularies and the tokenizers."""
    make_tokenizers(cache)


def make_tokenizers(cache: Path) -> None:
    opened = open_cache(cache)
    for requested in ("full", "trimmed"):
        student_tokenizer(opened, choose_vocabulary(requested, [opened])).tokenize("ibyo byose ni ukuri")


@dataclass(frozen=True)
class Outcome:
    """The exit code of a run (negative: a signal), its output, its cost, and its forbidden actions."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int
    seconds: float
    forbidden: list[str]


def call(command: str, cache: Path) -> int:
    """Run a command in this process and return its exit code."""
    name, *options = command.split()
    try:
        (reading if name in reading.commands else main).main([name, *options, str(cache)], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_forked(command: str, cache: Path, log: Path) -> Outcome:
    """Run a command in a process forked from this one."""
    if not (pid := os.fork()):
        run_watched(command, cache, log)
    limit = time.monotonic() + PATIENCE
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    texts = [(log / name).read_text(errors="backslashreplace") for name in ("stdout", "stderr")]
    # seconds of the processor, since the machine may be busy; a run that waits for ever counts as all of PATIENCE
    facts = json.loads((log / "facts").read_text()) if (log / "facts").exists() else [PATIENCE, []]
    return Outcome(os.waitstatus_to_exitcode(ended[1]), *texts, ended[2].ru_maxrss * 1024, *facts)


def run_watched(command: str, cache: Path, log: Path) -> None:
    """Run a command in the new process; write output and facts to files in `log`."""
    code, forbidden = 99, []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        outside = event == "open" and is_writing(arguments) and not is_allowed(str(arguments[0]), cache, log)
        if event in FORBIDDEN or outside:
            forbidden.append(f"{event} {arguments[0]}")

    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT), descriptor)
        os.chdir(log)
        tempfile.tempdir = str(log)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, resource.RLIM_INFINITY))
        sys.addaudithook(watch)
        started = time.process_time()
        code = call(command, cache)
        seconds = time.process_time() - started
        sys.stdout.flush()
        sys.stderr.flush()
        (log / "facts").write_text(json.dumps([seconds, forbidden]))
    finally:
        os._exit(code)


def is_allowed(path: str, cache: Path, log: Path) -> bool:
    return path.startswith((f"{cache}{os.sep}", f"{log}{os.sep}")) or path == os.devnull or path.isdecimal()


def serve(requests: Connection, sound: Path) -> None:
    """Run everything once on a sound cache, then each requested command until the connection ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for command in ("info", "info --json", "info --toml", "verify --deep", "train"):
        if call(command, sound):
            raise SystemExit(f"{command} fails on a sound cache")
    while True:
        try:
            command, cache, log = requests.recv()
        except EOFError:
            return
        requests.send(run_forked(command, cache, log))


class Warm:
    """A warm process that runs commands against caches."""

    def __init__(self, sound: Path) -> None:
        self.sound = sound
        self.requests, theirs = server().Pipe()
        self.process = server().Process(target=serve, args=(theirs, sound))
        self.process.start()
        theirs.close()

    def run(self, command: str, cache: Path) -> Outcome:
        with tempfile.TemporaryDirectory(dir=cache.parent) as log:
            self.requests.send((command, cache, Path(log)))
            return self.requests.recv()

    def close(self) -> None:
        self.requests.close()
        self.process.join()


@contextmanager
def warm_process(folder: Path) -> Iterator[Warm]:
    warm = Warm(sound_cache(folder, "threshold"))
    try:
        yield warm
    finally:
        warm.close()


def faults(attack: Attack, outcome: Outcome, ordinary: Outcome) -> list[str]:
    """Return in what an attack succeeded.

    Nothing, if it was refused, or shown as harmless text, in the expected words, at little more than the cost of a
    sound cache (`ordinary`).
    """
    printed = outcome.stdout + outcome.stderr
    lines = outcome.stderr.splitlines()
    if attack.against.startswith("verify"):  # it reports all damage, a line each
        refused = outcome.code == 1 and not lines and attack.refused in outcome.stdout
    elif attack.refused:
        refused = outcome.code in (1, 2) and not outcome.stdout and len(lines) == 1 and attack.refused in lines[0]
        refused = refused and lines[0].startswith("error: ") and "unexpected" not in lines[0]
    else:
        refused = outcome.code == 0 and not lines and attack.shown in outcome.stdout
    found = {
        f"not refused as it should be: exit code {outcome.code}, {printed!r:.2000}": not refused,
        f"printed what drives a terminal: {printed!r:.2000}": not printed.replace("\n", "").isprintable(),
        f"did what is forbidden: {outcome.forbidden}": bool(outcome.forbidden),
        f"took {outcome.peak_bytes - ordinary.peak_bytes:,} bytes more": outcome.peak_bytes
        > ordinary.peak_bytes + MORE_MEMORY,
        f"took {outcome.seconds:.1f} s": outcome.seconds > MOST_SECONDS,
    }
    return [fault for fault, so in found.items() if so]


def hostile_cache(attack: Attack, folder: Path) -> Path:
    """Return a sound cache in a new folder, attacked."""
    cache = sound_cache(folder, attack.keep)
    attack.change(cache)
    return cache


@click.command()
@click.argument("name", type=click.Choice(sorted(ATTACKS)))
def run_alone(name: str) -> None:
    """Run one attack, with the output and the exit code of the command."""
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(call(ATTACKS[name].against, hostile_cache(ATTACKS[name], Path(folder))))


if __name__ == "__main__":
    run_alone()
