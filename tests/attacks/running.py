"""What is run against a hostile cache, and what it costs: each run a process of its own, forked from one that is warm.

The warm process has everything imported, so time and memory are those of the work. What runs may write nowhere but
in its cache and in the folder for temporary files, start no program, load no pickle and open no connection.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import forging
from helpers.builds import server
from helpers.crashes import is_writing

from cache_tools import open_cache
from cache_tools.cli.main import main
from cache_tools.cli.terminal import one_line_errors
from comet.distillation import choose_vocabulary, open_for_training
from comet.student.vocabulary import student_tokenizer
from comet.train.dataset import CacheRows, collate, shards_of

HELPERS = {"forging", "running", "payload", "test_attacks"}
PATIENCE = 20.0  # seconds after which a process is taken for stuck
MORE_MEMORY = 300 * 10**6  # bytes above those of a sound cache, and
MOST_SECONDS = 2.0  # that an attack may cost
MOST_MEMORY = 4 * 2**30  # bytes of address space that it may take: a bomb must not hurt the machine
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}


@click.group()
def reading() -> None:
    """What `comet-train` does with a cache before its first step."""


@reading.command()
@click.argument("cache", type=click.Path(path_type=Path))
@one_line_errors
def train(cache: Path) -> None:
    """Every array as batches, the vocabularies and the tokenizers of a student."""
    (opened,) = open_for_training([cache])
    for group in ("train", "validation"):
        rows = CacheRows(shards_of([opened], group), opened.extent.arrays)
        for row in range(len(rows)):
            collate(rows.__getitems__([row]))
    make_tokenizers(cache)


@reading.command()
@click.argument("cache", type=click.Path(path_type=Path))
@one_line_errors
def tokenizer(cache: Path) -> None:
    """Only the vocabularies and the tokenizers."""
    make_tokenizers(cache)


def make_tokenizers(cache: Path) -> None:
    opened = open_cache(cache)
    for requested in ("full", "trimmed"):
        student_tokenizer(opened, choose_vocabulary(requested, [opened])).tokenize("ibyo byose ni ukuri")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code (negative: a signal), what it printed, its cost, and what it did that is forbidden."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int
    seconds: float
    forbidden: list[str]


def call(command: str, cache: Path) -> int:
    """Runs it in this process. Returns the exit code."""
    name, *options = command.split()
    try:
        (reading if name in reading.commands else main).main([name, *options, str(cache)], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run_forked(command: str, cache: Path, log: Path) -> Outcome:
    """Runs it in a process forked from this one."""
    if not (pid := os.fork()):
        run_watched(command, cache, log)
    limit = time.monotonic() + PATIENCE
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    texts = [(log / name).read_text(errors="backslashreplace") for name in ("stdout", "stderr")]
    # of the processor, since the machine may be busy; who waits for ever takes all of PATIENCE
    facts = json.loads((log / "facts").read_text()) if (log / "facts").exists() else [PATIENCE, []]
    return Outcome(os.waitstatus_to_exitcode(ended[1]), *texts, ended[2].ru_maxrss * 1024, *facts)


def run_watched(command: str, cache: Path, log: Path) -> None:
    """In the new process: output and facts go to files in `log`."""
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
    """The warm process: has run everything once, and then runs what it is asked for, until the connection ends."""
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
    warm = Warm(forging.sound_cache(folder, "threshold"))
    try:
        yield warm
    finally:
        warm.close()


def faults(attack: ModuleType, outcome: Outcome, ordinary: Outcome) -> list[str]:
    """In what an attack succeeded: nothing, if it was refused (or shown as harmless text) in the words it expects, and
    cost little more than a sound cache."""
    printed = outcome.stdout + outcome.stderr
    lines = outcome.stderr.splitlines()
    if attack.AGAINST.startswith("verify"):  # it reports all damage, a line each
        refused = outcome.code == 1 and not lines and attack.REFUSED in outcome.stdout
    elif hasattr(attack, "REFUSED"):
        refused = outcome.code in (1, 2) and not outcome.stdout and len(lines) == 1 and attack.REFUSED in lines[0]
        refused = refused and lines[0].startswith("error: ") and "unexpected" not in lines[0]
    else:
        refused = outcome.code == 0 and not lines and attack.SHOWN in outcome.stdout
    found = {
        f"not refused as it should be: exit code {outcome.code}, {printed!r:.2000}": not refused,
        f"printed what drives a terminal: {printed!r:.2000}": not printed.replace("\n", "").isprintable(),
        f"did what is forbidden: {outcome.forbidden}": bool(outcome.forbidden),
        f"took {outcome.peak_bytes - ordinary.peak_bytes:,} bytes more": outcome.peak_bytes
        > ordinary.peak_bytes + MORE_MEMORY,
        f"took {outcome.seconds:.1f} s": outcome.seconds > MOST_SECONDS,
    }
    return [fault for fault, so in found.items() if so]


def attacks() -> dict[str, ModuleType]:
    """Every attack by its name."""
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if path.stem not in HELPERS)
    return {name: importlib.import_module(name) for name in names}


def hostile_cache(attack: ModuleType, folder: Path) -> Path:
    """A sound cache in a new folder, attacked."""
    cache = forging.sound_cache(folder, getattr(attack, "KEEP", "threshold"))
    attack.attack(cache)
    return cache


def alone() -> None:
    """The attack that is this program: prints what comes of it."""
    attack = sys.modules["__main__"]
    folder = Path(tempfile.mkdtemp())
    try:
        sys.exit(call(attack.AGAINST, hostile_cache(attack, folder)))
    finally:
        shutil.rmtree(folder)
