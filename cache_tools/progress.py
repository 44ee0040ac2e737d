"""Progress of long work: a bar on a terminal, or a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 60.0  # between two lines of a log, and until the first: short work says nothing there
IN_A_LOG = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"
ENDLESS = "{desc}: {n_fmt}, {rate_fmt}, {elapsed} gone{postfix}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit that suits it: 80 s, 12 min, 1.5 h, 3.2 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class _Lines:
    """A file for tqdm that writes each state of a bar as a line, instead of drawing over the last one."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def show_progress(
    work: Iterable[Any] | None = None, what: str = "", unit: str = "", *, total: float | None = None,
    seconds: float = SECONDS, **options: Any,
) -> "tqdm[Any]":  # fmt: skip
    """Return a bar on stderr that `work`, or else calls of `update`, advance up to `total`.

    A total of infinity stands for one that the caller sets later. Without a terminal a line is printed every `seconds`,
    and none for work that takes less. `options` are those of tqdm.
    """
    options |= {"desc": what, "unit": unit, "total": total}
    if sys.stderr.isatty() or options.get("disable"):
        return tqdm(work, **options)
    ends = total is not None or hasattr(work, "__len__")
    options |= {"mininterval": seconds, "maxinterval": seconds, "delay": seconds, "miniters": 1, "smoothing": 0}
    return tqdm(work, file=_Lines(), bar_format=IN_A_LOG if ends else ENDLESS, **options)
