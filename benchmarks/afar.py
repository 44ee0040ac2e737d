"""Speed of training from a cache at a URL ÷ from the same cache on the disk, with an empty and a full local cache.

A web server on the loopback address delays every request by 30 ms. The student is small, as short steps leave the
least time to fetch shards, and trains on one thread, as the other core runs the server.

    python benchmarks/afar.py --shared ../shared --output afar.json
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import torch
from tqdm import tqdm

import cache_tools.sample
from cache_tools import build_cache
from cache_tools.settings import BuildSettings, LocalCache
from comet import StudentConfig, distill, open_for_training

GOAL = 0.95


class Slow(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    delay = 0.0

    def do_GET(self) -> None:
        time.sleep(self.delay)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def serve(files: Path, delay: float, port: "multiprocessing.Queue[int]") -> None:
    Slow.delay = delay
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(files))) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextmanager
def serving(files: Path, delay: float) -> Iterator[str]:
    """Serve a folder from a process of its own, and yield its URL."""
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve, args=(files, delay, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()


def seconds_of(url: str, local: LocalCache, output: Path, student: str) -> tuple[float, float]:
    """Return the seconds of the whole call, from opening the cache to the report, and of the epoch alone."""
    started = time.monotonic()
    result = distill(open_for_training([url], local), StudentConfig(output, student=student, epochs=1))
    return time.monotonic() - started, result.seconds


@click.command(help=__doc__.split("\n\n")[0])
@click.option(
    "--shared", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with the real text."
)
@click.option("--tokens", default=2_000_000, show_default=True)
@click.option("--student", default="nano", show_default=True)
@click.option("--delay", default=0.03, show_default=True, help="Seconds of delay of every request.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="The figures as JSON.")
def main(shared: Path, tokens: int, student: str, delay: float, rounds: int, output: Path | None) -> None:
    torch.set_num_threads(1)
    whole: dict[str, list[float]] = {"disk": [], "remote": [], "remote again": []}
    epoch: dict[str, list[float]] = {name: [] for name in whole}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = Path(cache_tools.sample.__file__).parent
        text = next((shared / "data/text").glob("kin*"))
        cache = build_cache(
            BuildSettings(folder / "kin.zarr", "kin", str(sample / "teacher"), (str(text),), max_tokens=tokens, views=1)
        )
        with serving(folder, delay) as url:
            for number in tqdm(range(rounds), "rounds", disable=None):
                local = LocalCache(folder / f"local-{number}", 10**12)
                for kind in whole:
                    source = str(cache.root) if kind == "disk" else f"{url}/kin.zarr"
                    of_call, of_epoch = seconds_of(source, local, folder / f"{number} {kind}", student)
                    whole[kind].append(of_call)
                    epoch[kind].append(of_epoch)
        size = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
    ratios = {
        f"speed of {what}, {kind} ÷ disk": round(
            statistics.median(d / a for d, a in zip(seconds["disk"], seconds[kind], strict=True)), 3
        )
        for what, seconds in (("the epoch", epoch), ("the whole call", whole))
        for kind in ("remote", "remote again")
    }
    result = {
        "student": student, "tokens": tokens, "bytes": size, "delay": delay, "rounds": rounds,
        "seconds of the epoch": {kind: [round(s, 2) for s in values] for kind, values in epoch.items()}, **ratios,
    }  # fmt: skip
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if output is not None:
        output.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    if ratios["speed of the epoch, remote ÷ disk"] < GOAL:
        raise SystemExit("missed its goal")


if __name__ == "__main__":
    main()
