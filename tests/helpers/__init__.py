"""What several tests share, also with the benchmarks: servers, processes, small caches and their damage."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
