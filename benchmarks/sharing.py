"""Caches on their way between machines: cut off and begun again, how fast, and how much of one moves for a part.

The servers are real ones on the loopback address, those of the tests, or do on purpose what broken ones do. Every part
ends with its figures, and the command fails where one is not what it must be.

    python benchmarks/sharing.py --output sharing.json
"""

import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "tests")]

from helpers import hostile_server as hostile
from helpers.builds import digests
from helpers.sharing_servers import free_port, nginx, nginx_process
from helpers.small_caches import make_cache, small_recipe

from cache_tools import open_cache
from cache_tools.store.recipe import Recipe
from cache_tools.store.staging import STAGING

REPOSITORY = Path(__file__).parents[1]
Result = dict[str, Any]
FOLDER_GOAL, HTTP_GOAL = 0.7, 0.8
BROKEN: dict[str, hostile.Mischief] = {
    "connection reset": hostile.reset,
    "truncated": hostile.truncated,
    "wrong bytes": hostile.wrong_bytes,
    "5xx": hostile.answering(503),
}


def start_pull(source: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cache_tools", "pull", source, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pull(source: str, folder: Path) -> tuple[int, str]:
    running = start_pull(source, folder)
    output, _ = running.communicate()
    return running.returncode, output


def arrived(folder: Path) -> dict[str, str]:
    """The files of a cache that have their names, by digest."""
    return {
        path: d
        for path, d in digests(folder).items()
        if d != "folder" and not path.startswith((STAGING, "ledger/lock"))
    }


def cuts(folder: Path, trials: int) -> Result:
    """Pulls that are cut at a random instant or file, then repeated: what has a name in between, and what arrives."""
    files = folder / "files"
    make_cache(files / "kin.zarr", small_recipe(train_rows=200))
    expected, drawn = arrived(files / "kin.zarr"), random.Random(0)
    complete, wrong_names, ends = 0, 0, Counter[str]()
    with nginx(folder / "nginx", files) as server, hostile.serving(files) as broken:
        seconds = duration(f"{server.pull}/kin.zarr", folder / "whole")
        for trial in tqdm(range(trials), "cuts", disable=None):
            there = folder / str(trial)
            kind = drawn.choice(["client killed", *BROKEN])
            if kind == "client killed":
                source = f"{server.pull}/kin.zarr"
                code = killed(source, there, drawn.uniform(0.3, 1) * seconds)
            else:
                source = f"{broken.url}/kin.zarr"
                path = drawn.choice(sorted(expected))
                times = None if kind == "wrong bytes" else 1
                broken.mischief, broken.scored = {f"kin.zarr/{path}": (BROKEN[kind], times)}, Counter()
                code, _ = pull(source, there)
                broken.mischief = {}
            ends[f"{kind}: {'went on' if code == 0 else 'ended'}"] += 1
            wrong_names += not (arrived(there).items() <= expected.items())
            code, _ = pull(source, there)
            complete += code == 0 and arrived(there) == expected
            shutil.rmtree(there)
    return {
        "cuts": dict(ends), "wrong bytes under a final name": wrong_names, "complete and identical": complete,
        "ok": complete == trials and not wrong_names,
    }  # fmt: skip


def duration(source: str, folder: Path) -> float:
    started = time.monotonic()
    code, output = pull(source, folder)
    if code:
        raise SystemExit(output)
    return time.monotonic() - started


def killed(source: str, folder: Path, seconds: float) -> int:
    """The exit code of a pull that is killed after so many seconds, unless it has ended before."""
    running = start_pull(source, folder)
    try:
        running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.kill()
        running.communicate()
    return running.returncode


def restarts(folder: Path, trials: int) -> Result:
    """A server that dies at a random instant of a pull and comes back a second later: the pull waits for it."""
    files = folder / "files"
    make_cache(files / "kin.zarr", small_recipe(train_rows=200))
    expected, drawn, port, complete = arrived(files / "kin.zarr"), random.Random(0), free_port(), 0
    for trial in tqdm(range(trials), "restarts", disable=None):
        there, source = folder / str(trial), f"http://127.0.0.1:{port}/kin.zarr"
        with nginx_process(folder / "nginx", files, port):
            seconds = duration(source, folder / f"{trial}-whole")
            running = start_pull(source, there)
            time.sleep(drawn.uniform(0.3, 1) * seconds)
        time.sleep(1.0)
        with nginx_process(folder / "nginx", files, port):
            running.communicate()
            complete += running.returncode == 0 and arrived(there) == expected
        shutil.rmtree(there)
    return {"trials": trials, "complete and identical": complete, "ok": complete == trials}


def large_recipe(shards: int) -> Recipe:
    """About 5 MB a shard, one shard of validation, most of it logits."""
    sizes = {"seq_len": 128, "max_targets": 8, "vocab_size": 512, "top_k": 128, "rows_per_shard": 1024}
    maps = {"attention_size": 32, "attention_every": 5}
    return small_recipe(train_rows=shards * 1024, validation_rows=1024, **sizes, **maps)


def throughput(folder: Path, shards: int, rounds: int) -> Result:
    """Seconds of pull beside those of plain tools, in turn: cp and sha256; curl, which compares nothing, alone and with
    sha256."""
    files = folder / "files"
    make_cache(files / "kin.zarr", large_recipe(shards))
    names = sorted(arrived(files / "kin.zarr"))
    size = sum((files / "kin.zarr" / name).stat().st_size for name in names)
    with nginx(folder / "nginx", files) as server:
        urls = folder / "urls"
        there = folder / "there"
        lines = [f'url = "{server.pull}/kin.zarr/{name}"\noutput = "{there}/{name}"\ncreate-dirs\n' for name in names]
        urls.write_text("".join(lines))
        curl = ["curl", "-sSf", "-K", str(urls)]
        work: dict[str, Callable[[], object]] = {
            "cp and sha256": lambda: copied_and_summed(files / "kin.zarr", there),
            "pull of a folder": lambda: pulled(str(files / "kin.zarr"), there),
            "curl": lambda: subprocess.run(curl, check=True),
            "curl and sha256": lambda: (subprocess.run(curl, check=True), summed(there)),
            "pull from nginx": lambda: pulled(f"{server.pull}/kin.zarr", there),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in tqdm(range(rounds), "throughput", disable=None):
            for name, action in work.items():
                started = time.monotonic()
                action()
                seconds[name].append(time.monotonic() - started)
                shutil.rmtree(there)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_folder = median["cp and sha256"] / median["pull of a folder"]
    of_http, of_both = (median[name] / median["pull from nginx"] for name in ("curl", "curl and sha256"))
    return {
        "bytes": size, "rounds": rounds, "median seconds": {name: round(value, 3) for name, value in median.items()},
        "folder ÷ (cp and sha256)": round(of_folder, 2), "http ÷ curl": round(of_http, 2),
        "http ÷ (curl and sha256)": round(of_both, 2),
        "ok": of_folder >= FOLDER_GOAL and of_http >= HTTP_GOAL,
    }  # fmt: skip


def pulled(source: str, folder: Path) -> None:
    """In this process, as Python's own start is not what is measured."""
    from click.testing import CliRunner

    from cache_tools.cli.main import main as comet_cache

    done = CliRunner().invoke(comet_cache, ["pull", source, str(folder)])
    if done.exit_code:
        raise SystemExit(done.output)


def copied_and_summed(source: Path, folder: Path) -> None:
    subprocess.run(["cp", "-r", source, folder], check=True)
    summed(folder)


def summed(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def tenth(folder: Path, shards: int) -> Result:
    """The bytes that move for a tenth of a cache."""
    make_cache(folder / "kin.zarr", large_recipe(shards))
    subset = ["subset", str(folder / "kin.zarr"), str(folder / "part"), "--fraction", "0.1"]
    subprocess.run(
        [sys.executable, "-m", "cache_tools", *subset],
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    part = open_cache(folder / "part")
    part.require_complete()
    share = bytes_of(folder / "part") / bytes_of(folder / "kin.zarr")
    return {"share of the bytes": round(share, 4), "ok": 0.09 <= share <= 0.11}


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


PARTS: dict[str, Callable[[Path, float], Result]] = {
    "cuts": lambda folder, scale: cuts(folder, round(100 * scale)),
    "restarts": lambda folder, scale: restarts(folder, round(10 * scale)),
    "throughput": lambda folder, scale: throughput(folder, round(100 * scale), 5),
    "tenth": lambda folder, scale: tenth(folder, round(100 * scale)),
}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--only", "wanted", type=click.Choice(list(PARTS)), multiple=True, help="Only these parts.  [all]")
@click.option("--scale", default=1.0, show_default=True, help="A smaller run: so much of trials and bytes.")
@click.option("--output", type=click.Path(path_type=Path), help="The figures as JSON.")
def main(wanted: tuple[str, ...], scale: float, output: Path | None) -> None:
    results = {}
    for name in wanted or PARTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            results[name] = PARTS[name](Path(folder), scale) | {"seconds": round(time.monotonic() - started)}
        print(f"{name}: {json.dumps(results[name], ensure_ascii=False)}", flush=True)
    if output is not None:
        output.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    if failed := [name for name, result in results.items() if not result["ok"]]:
        raise SystemExit(f"not as it must be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
