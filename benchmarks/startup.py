"""Measure how long a person waits for `--help`, `languages` and `info`: fresh processes, bytecode compiled before.

Prints JSON: seconds on the clock and of the processor, medians of interleaved runs; the latter is what a busy machine
does not lengthen much. Without `--cache` the sample's cache is built first.

    python benchmarks/startup.py
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click
from reader import build_sample


def run(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor that a command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return ended - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="A cache for info.  [default: the sample's]")
@click.option("--repeats", default=15, help="Runs of each command.")
def main(cache: Path | None, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = cache or build_sample(Path(folder))
        commands = {
            "comet-cache --help": ["cache_tools", "--help"],
            "comet-cache languages": ["cache_tools", "languages"],
            "comet-cache info": ["cache_tools", "info", str(path)],
            "comet-train --help": ["comet", "train", "--help"],
        }
        seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for turn in range(repeats + 1):
            for name, command in commands.items():
                taken = run(command)
                if turn:  # the first round compiles
                    seconds[name].append(taken)
    kinds = ("on the clock", "of the processor")
    found = {
        name: {kind: round(statistics.median(run[i] for run in taken), 3) for i, kind in enumerate(kinds)}
        for name, taken in seconds.items()
    }
    click.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
