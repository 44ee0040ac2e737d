"""Sharing of caches: transfers that are cut and repeated, throughput, HTTP clients, and the bytes of a part.

The servers are real ones on the loopback address, those of the tests, or misbehave on purpose. Every part prints its
figures, and the command fails if one misses its goal.

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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import fsspec
from click.testing import CliRunner
from tqdm import tqdm

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "tests")]

from helpers import hostile_server as hostile
from helpers.builds import digests
from helpers.sharing_servers import free_port, nginx, nginx_process
from helpers.small_caches import make_cache, small_recipe

import cache_tools.cli.main
from cache_tools import open_cache
from cache_tools.sharing.locations.http import HttpClient
from cache_tools.store.recipe import Recipe
from cache_tools.store.staging import STAGING

REPOSITORY = Path(__file__).parents[1]
Result = dict[str, Any]
Get = Callable[[str, int], int]  # url and size of a file → the bytes that arrived
FOLDER_GOAL, HTTP_GOAL, CLIENT_GOAL = 0.7, 0.8, 1.25
BROKEN: dict[str, hostile.Mischief] = {
    "connection reset": hostile.reset,
    "truncated": hostile.truncated,
    "wrong bytes": hostile.wrong_bytes,
    "5xx": hostile.answering(503),
}


def start_pull(source: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cache_tools", "pull", source, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pull(source: str, folder: Path, seconds: float | None = None) -> int:
    """Return the exit code of a pull, which is killed after so many seconds."""
    running = start_pull(source, folder)
    try:
        return running.wait(seconds)
    except subprocess.TimeoutExpired:
        running.kill()
        return running.wait()


def arrived(folder: Path) -> dict[str, str]:
    """Return path → digest of the complete files of a cache."""
    found = {path: digest for path, digest in digests(folder).items() if digest != "folder"}
    return {path: digest for path, digest in found.items() if not path.startswith((STAGING, "ledger/lock"))}


def cuts(folder: Path, trials: int) -> Result:
    """Cut pulls at a random instant or file, and repeat them: the complete files in between, and at the end."""
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
                code = pull(source, there, drawn.uniform(0.3, 1) * seconds)
            else:
                source = f"{broken.url}/kin.zarr"
                path = drawn.choice(sorted(expected))
                times = None if kind == "wrong bytes" else 1
                broken.mischief, broken.requests = {f"kin.zarr/{path}": (BROKEN[kind], times)}, Counter()
                code = pull(source, there)
                broken.mischief = {}
            ends[f"{kind}: {'went on' if code == 0 else 'ended'}"] += 1
            wrong_names += not (arrived(there).items() <= expected.items())
            complete += pull(source, there) == 0 and arrived(there) == expected
            shutil.rmtree(there)
    return {
        "cuts": dict(ends), "wrong bytes under a final name": wrong_names, "complete and identical": complete,
        "ok": complete == trials and not wrong_names,
    }  # fmt: skip


def duration(source: str, folder: Path) -> float:
    started = time.monotonic()
    if pull(source, folder):
        raise SystemExit(f"{source}: cannot be pulled")
    return time.monotonic() - started


def restarts(folder: Path, trials: int) -> Result:
    """Kill a server at a random instant of a pull, and start it again a second later: the pull goes on."""
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
            complete += running.wait() == 0 and arrived(there) == expected
        shutil.rmtree(there)
    return {"trials": trials, "complete and identical": complete, "ok": complete == trials}


def large_recipe(shards: int) -> Recipe:
    """About 5 MB a shard, one shard of validation, most of it logits."""
    sizes = {"seq_len": 128, "max_targets": 8, "vocab_size": 512, "top_k": 128, "rows_per_shard": 1024}
    attention = {"attention_queries": 8, "attention_keys": 16}
    return small_recipe(train_rows=shards * 1024, validation_rows=1024, **sizes, **attention)


def throughput(folder: Path, shards: int, rounds: int) -> Result:
    """Time pull and plain tools in turn: cp and SHA-256; curl, which compares nothing, alone and with SHA-256."""
    files = folder / "files"
    make_cache(files / "kin.zarr", large_recipe(shards))
    names = sorted(arrived(files / "kin.zarr"))
    size = sum((files / "kin.zarr" / name).stat().st_size for name in names)
    with nginx(folder / "nginx", files) as server:
        urls, there = folder / "urls", folder / "there"
        lines = [f'url = "{server.pull}/kin.zarr/{name}"\noutput = "{there}/{name}"\ncreate-dirs\n' for name in names]
        urls.write_text("".join(lines))
        cp, curl = ["cp", "-r", str(files / "kin.zarr"), str(there)], ["curl", "-sSf", "-K", str(urls)]
        work: dict[str, Callable[[], object]] = {
            "cp and sha256": lambda: (subprocess.run(cp, check=True), summed(there)),
            "pull of a folder": lambda: comet_cache("pull", str(files / "kin.zarr"), str(there)),
            "curl": lambda: subprocess.run(curl, check=True),
            "curl and sha256": lambda: (subprocess.run(curl, check=True), summed(there)),
            "pull from nginx": lambda: comet_cache("pull", f"{server.pull}/kin.zarr", str(there)),
        }
        seconds = interleaved(work, rounds, time.monotonic, lambda: shutil.rmtree(there))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_folder = median["cp and sha256"] / median["pull of a folder"]
    of_http, of_both = (median[name] / median["pull from nginx"] for name in ("curl", "curl and sha256"))
    return {
        "bytes": size, "rounds": rounds, "median seconds": {name: round(value, 3) for name, value in median.items()},
        "folder ÷ (cp and sha256)": round(of_folder, 2), "http ÷ curl": round(of_http, 2),
        "http ÷ (curl and sha256)": round(of_both, 2),
        "ok": of_folder >= FOLDER_GOAL and of_http >= HTTP_GOAL,
    }  # fmt: skip


def comet_cache(*arguments: str) -> None:
    """Run a command in this process, so that the start of Python is not measured."""
    done = CliRunner().invoke(cache_tools.cli.main.main, arguments)
    if done.exit_code:
        raise SystemExit(done.output)


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float], clean: Callable[[], object]
) -> dict[str, list[float]]:
    """Return the seconds of each action in each round; every round runs all of them, `clean` after each."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in tqdm(range(rounds), "rounds", disable=None):
        for name, action in work.items():
            started = clock()
            action()
            seconds[name].append(clock() - started)
            clean()
    return seconds


def summed(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def clients(folder: Path, scale: float, rounds: int) -> Result:
    """Compare HTTP clients that fetch 200 files of 20 kB and 4 of 50 MB with eight threads, in turn.

    A ratio is the median over the rounds of a client's processor time ÷ that of ours; wall-clock time would depend on
    what else runs. Our own client is kept while httpx, which huggingface_hub needs anyway, takes CLIENT_GOAL times as
    much.
    """
    ratios: dict[str, dict[str, float]] = {}
    with nginx(folder / "nginx", folder / "files") as server:
        for count, size in ((200, 20_000), (4, 50_000_000)):
            data, urls = os.urandom(round(size * scale)), [f"{server.pull}/{size}-{i}" for i in range(count)]
            for i in range(count):
                (folder / "files" / f"{size}-{i}").write_bytes(data)
            work = {name: partial(fetch_all, client, urls, len(data)) for name, client in CLIENTS.items()}
            seconds = interleaved(work, rounds, time.process_time, lambda: None)
            ratios[f"{count} files of {len(data):,} bytes"] = {
                name: round(statistics.median(a / b for a, b in zip(values, seconds["ours"], strict=True)), 2)
                for name, values in seconds.items()
            }
    slowest = max(found["httpx"] for found in ratios.values())
    return {"rounds": rounds, "processor time ÷ ours": ratios, "ok": slowest > CLIENT_GOAL}


def fetch_all(client: Callable[[], Get], urls: list[str], size: int) -> None:
    get = client()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda url: get(url, size), urls)) == {size}


def ours() -> Get:
    client = HttpClient(timeout=30.0)
    return lambda url, size: sum(map(len, client.blocks(url, time_limit=60.0)))


def fsspec_whole() -> Get:
    files = fsspec.filesystem("http", skip_instance_cache=True)
    return lambda url, size: len(files.cat_file(url))


def fsspec_blocks() -> Get:
    files = fsspec.filesystem("http", skip_instance_cache=True)

    def get(url: str, size: int) -> int:
        with files.open(url, "rb", block_size=0, size=size) as file:  # without its size it sends two requests
            return sum(map(len, iter(partial(file.read, 2**20), b"")))

    return get


def httpx_blocks() -> Get:
    httpx = import_module("httpx2" if find_spec("httpx2") else "httpx")  # depends on the version of huggingface_hub
    client = httpx.Client(timeout=30.0)

    def get(url: str, size: int) -> int:
        with client.stream("GET", url) as answer:
            return sum(map(len, answer.iter_raw()))

    return get


CLIENTS = {"ours": ours, "fsspec": fsspec_blocks, "fsspec in memory": fsspec_whole, "httpx": httpx_blocks}


def tenth(folder: Path, shards: int) -> Result:
    """Measure the bytes of a tenth of a cache."""
    make_cache(folder / "kin.zarr", large_recipe(shards))
    comet_cache("subset", str(folder / "kin.zarr"), str(folder / "part"), "--fraction", "0.1")
    open_cache(folder / "part").require_complete()
    share = bytes_of(folder / "part") / bytes_of(folder / "kin.zarr")
    return {"share of the bytes": round(share, 4), "ok": 0.09 <= share <= 0.11}


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


PARTS: dict[str, Callable[[Path, float], Result]] = {
    "cuts": lambda folder, scale: cuts(folder, round(100 * scale)),
    "restarts": lambda folder, scale: restarts(folder, round(10 * scale)),
    "throughput": lambda folder, scale: throughput(folder, round(100 * scale), 5),
    "clients": lambda folder, scale: clients(folder, scale, 15),
    "tenth": lambda folder, scale: tenth(folder, round(100 * scale)),
}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--only", "wanted", type=click.Choice(list(PARTS)), multiple=True, help="Only these parts.  [all]")
@click.option("--scale", default=1.0, show_default=True, help="Share of the trials and bytes, for a quick run.")
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
        raise SystemExit(f"missed its goal: {', '.join(failed)}")


if __name__ == "__main__":
    main()
