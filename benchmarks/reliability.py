"""Test caches when things go wrong: kills, a full disk, damaged files, hostile content.

The same checks as in the tests, with their tools, many more times; nothing is simulated where the real thing can be
had. Every part ends with a count, and the command fails where one is not what it must be.

    python benchmarks/reliability.py --output reliability.json
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "tests", "tests/attacks")]

from forging import sound_cache
from helpers.builds import Ended, Running, build_arguments, digests
from helpers.hostile_json import changed, hostile_files, read_what_it_says
from running import ATTACKS, faults, hostile_cache, warm_process

from cache_tools import open_cache
from cache_tools.errors import CometError
from cache_tools.text.tokenizer import load_tokenizer
from cache_tools.verify.verify import verify
from comet.preparation import choose_vocabulary
from comet.train.dataset import CacheRows, collate, shards_of

SAMPLE = Path(str(files("cache_tools.sample")))
OPTIONS: dict[str, Any] = {
    "max_tokens": 2400,
    "seq_len": 48,
    "views": 2,
    "rows_per_shard": 8,
    "top_k": 8,
    "attention_keys": 6,
}
Result = dict[str, Any]


def start_build(out: Path, log: Path) -> Running:
    return Running(build_arguments(out, SAMPLE / "teacher", SAMPLE / "text.txt", **OPTIONS), log)


def whole_build(folder: Path) -> tuple[Path, dict[str, str], float]:
    """An undisturbed build: its folder, the digests of its files, and its seconds."""
    out = folder / "whole" / "kin.zarr"
    started = time.monotonic()
    ended = start_build(out, folder / "log").wait()
    if ended.code:
        raise SystemExit(ended.stderr)
    return out, digests(out), time.monotonic() - started


def kills(folder: Path, trials: int) -> Result:
    """Builds killed by SIGKILL at a random instant, most once more while they go on, then let to their end."""
    _, expected, _ = whole_build(folder)
    _, _, seconds = whole_build(folder / "again")  # the first one also warms up
    drawn, identical, killed = random.Random(0), 0, 0
    for trial in tqdm(range(trials), "kills", disable=None):
        out = folder / f"killed-{trial}" / "kin.zarr"
        while not (times := sum(dies_at(out, folder, drawn.uniform(0, seconds)) for _ in range(2))):
            shutil.rmtree(out.parent)  # it was ready before it could be killed
        killed += times
        ended = start_build(out, folder / "log").wait()
        alone = [path.name for path in out.parent.iterdir()] == [out.name]
        identical += ended.code == 0 and digests(out) == expected and alone
        shutil.rmtree(out.parent)
    return {"builds": trials, "kills": killed, "identical": identical, "ok": identical == trials}


def dies_at(out: Path, folder: Path, instant: float) -> bool:
    """Starts a build or goes on with it, and kills it after so many seconds, if it is not ready by then."""
    running = start_build(out, folder / "log")
    running.process.join(instant)
    alive = bool(running.process.is_alive())
    if alive:
        running.process.kill()
    running.wait()
    return alive


def full_disk(folder: Path, points: int) -> Result:
    """Builds on a disk of a growing size, each too small for the whole; then the disk grows and the build goes on."""
    _, expected, _ = whole_build(folder)
    needed = disk_needed(folder)
    good, errors = 0, Counter[str]()
    for point in tqdm(range(points), "full disk", disable=None):
        disk = folder / f"disk-{point}"
        disk.mkdir()
        size = int(needed * (point + 0.5) / points)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        try:
            first = start_build(disk / "kin.zarr", folder / "log").wait()
            subprocess.run(["mount", "-o", f"remount,size={4 * needed}", disk], check=True)
            second = start_build(disk / "kin.zarr", folder / "log").wait()
            clear = first.code == 1 and is_one_line(first) and "No space left on device" in first.stderr
            errors[first.stderr.strip().replace(str(folder), "")[:160]] += 1
            same = second.code == 0 and digests(disk / "kin.zarr") == expected
            good += clear and same and [path.name for path in disk.iterdir()] == ["kin.zarr"]
        finally:
            subprocess.run(["umount", disk], check=True)
    return {"points": points, "clear error, then identical": good, "errors": dict(errors), "ok": good == points}


def disk_needed(folder: Path) -> int:
    """The bytes that a build takes at its end, as a disk in memory counts them."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
    try:
        start_build(disk / "kin.zarr", folder / "log").wait()
        return shutil.disk_usage(disk).used
    finally:
        subprocess.run(["umount", disk], check=True)


def is_one_line(ended: Ended) -> bool:
    """An error that was foreseen, in one line."""
    lines = ended.stderr.splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and "unexpected" not in lines[0]


def read_for_training(root: Path) -> str:
    """A digest of all that a training takes from a cache. Raises CometError."""
    cache = open_cache(root)
    cache.require_complete()
    digest = hashlib.sha256()
    for group in ("train", "validation"):
        rows = CacheRows(shards_of([cache], group), list(cache.extent.arrays))
        for begin in range(0, len(rows), 64):
            batch = collate(rows.__getitems__(range(len(rows))[begin : begin + 64]), cache.recipe)
            digest.update(b"".join(batch[name].numpy().tobytes() for name in sorted(batch)))
    digest.update(choose_vocabulary("trimmed", [cache]).student_id.numpy().tobytes())
    digest.update(cache.vocabulary.embedding.tobytes())
    digest.update(str(sorted(load_tokenizer(cache.tokenizer_folder).get_vocab().items())).encode())
    return digest.hexdigest()


def damage(folder: Path, trials: int, change: Callable[[Path, random.Random], str]) -> Result:
    """One change to a file of a sound cache at a time: what verify says of it, and what a training would take."""
    root, _, _ = whole_build(folder)
    expected, drawn = read_for_training(root), random.Random(0)
    if verify(root).damage:
        raise SystemExit(f"{root}: verify finds damage in a sound cache: {verify(root).damage}")
    copy, kinds = folder / "copy", Counter[str]()
    reported = refused = used = 0
    for _ in tqdm(range(trials), "damage", disable=None):
        shutil.copytree(root, copy)
        while digests(copy) == digests(root):
            kind = change(copy, drawn)
        kinds[kind] += 1
        reported += bool(verify(copy).damage) or bool(verify(copy).missing)
        try:
            used += read_for_training(copy) != expected
        except CometError:
            refused += 1
        shutil.rmtree(copy)
    return {
        "changes": dict(kinds), "reported": reported, "training refused": refused, "used without an error": used,
        "ok": reported == trials and not used,
    }  # fmt: skip


def files_of(root: Path) -> list[Path]:
    """All but the lock, which is empty and may be absent."""
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "lock")


def flip_bit(root: Path, drawn: random.Random) -> str:
    path = drawn.choice(files_of(root))
    data = bytearray(path.read_bytes())
    data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    path.write_bytes(data)
    return "bit"


def change_file(root: Path, drawn: random.Random) -> str:
    """Cuts a file off, removes it, exchanges it with another, or puts a copy of it in another's place or beside it."""
    path, other = drawn.choice(files_of(root)), drawn.choice(files_of(root))
    kind = drawn.choice(["truncated", "deleted", "exchanged", "in another's place", "copied"])
    data, others = path.read_bytes(), other.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: drawn.randrange(len(data))])
    elif kind == "deleted":
        path.unlink()
    elif kind == "exchanged":
        path.write_bytes(others)
        other.write_bytes(data)
    elif kind == "in another's place":
        other.write_bytes(data)
    else:
        path.with_name(f"{path.name}.copy").write_bytes(data)
    return kind


def state_machine(folder: Path, runs: int) -> Result:
    """The store against a model in memory; a difference ends this command with the steps that lead to it."""
    from helpers.store_machine import StoreMachine
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    checks = list(HealthCheck)
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=runs, stateful_step_count=20, deadline=None, database=None, suppress_health_check=checks
        ),
    )
    return {"runs": runs, "differences": 0, "ok": True}


def fuzz(folder: Path, inputs: int) -> Result:
    """Random changes to what a cache says of itself; whatever is raised must be our own error."""
    cache, drawn, refused, slowest, others = sound_cache(folder, "threshold"), random.Random(0), 0, 0.0, Counter[str]()
    for _ in tqdm(range(inputs), "fuzz", disable=None):
        kind, files = hostile_files(cache, drawn)
        started = time.process_time()
        with changed(cache, files):
            try:
                refused += read_what_it_says(cache) == "refused"
            except Exception as error:
                others[f"{kind}: {type(error).__name__}: {str(error)[:80]}"] += 1
        slowest = max(slowest, time.process_time() - started)
    return {
        "inputs": inputs, "refused": refused, "understood": inputs - refused - others.total(), "others": dict(others),
        "most seconds": round(slowest, 2), "ok": not others,
    }  # fmt: skip


def hostile(folder: Path) -> Result:
    """Every attack of tests/attacks, against what it is meant for."""
    succeeded, seconds, memory = {}, dict[str, float](), dict[str, int]()
    with warm_process(folder / "sound") as warm:
        commands = {attack.against for attack in ATTACKS.values()}
        ordinary = {command: warm.run(command, warm.sound) for command in commands}
        for name, attack in tqdm(ATTACKS.items(), "hostile", disable=None):
            outcome = warm.run(attack.against, hostile_cache(attack, folder / name))
            if found := faults(attack, outcome, ordinary[attack.against]):
                succeeded[name] = found
            seconds[name] = outcome.seconds
            memory[name] = max(outcome.peak_bytes - ordinary[attack.against].peak_bytes, 0)
            shutil.rmtree(folder / name)
    slowest, largest = max(seconds, key=lambda n: seconds[n]), max(memory, key=lambda n: memory[n])
    return {
        "attacks": len(ATTACKS), "refused or harmless": len(ATTACKS) - len(succeeded), "succeeded": succeeded,
        "most seconds": [slowest, round(seconds[slowest], 2)],
        "most MB above a sound cache": [largest, round(memory[largest] / 1e6)], "ok": not succeeded,
    }  # fmt: skip


PARTS: dict[str, Callable[[Path], Result]] = {
    "kills": partial(kills, trials=100),
    "bit flips": partial(damage, trials=1000, change=flip_bit),
    "files": partial(damage, trials=200, change=change_file),
    "full disk": partial(full_disk, points=20),
    "state machine": partial(state_machine, runs=500),
    "fuzz": partial(fuzz, inputs=20_000),
    "hostile": hostile,
}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--only", "wanted", type=click.Choice(list(PARTS)), multiple=True, help="Only these parts.  [all]")
@click.option("--output", type=click.Path(path_type=Path), help="The figures as JSON.")
def main(wanted: tuple[str, ...], output: Path | None) -> None:
    results = {}
    for name in wanted or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            results[name] = PARTS[name](Path(folder)) | {"seconds": round(time.monotonic() - started)}
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if output is not None:
        output.write_text(json.dumps(results, indent=1))
    if failed := [name for name, result in results.items() if not result["ok"]]:
        raise SystemExit(f"not as it must be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
