"""How a text of several files is attached to a small real cache."""

from pathlib import Path

from cache_tools import Cache
from helpers.builds import digests


def given(corpus: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`--text` and `--exclude`."""
    return (str(corpus / "a.txt"), str(corpus / "b.txt")), (str(corpus / "test.txt"),)


def call(cache: Cache, texts: list[Path], exclude: Path) -> list[str]:
    options = [part for one in texts for part in ("--text", str(one))]
    return ["attach", str(cache.root), *options, "--exclude", str(exclude)]


def files(folder: Path) -> dict[str, str]:
    """Without locks, and without what a process that only seems to have died still holds."""
    found = {path: digest for path, digest in digests(folder).items() if digest != "folder"}
    return {path: d for path, d in found.items() if not path.endswith("lock") and ".staging-" not in path}
