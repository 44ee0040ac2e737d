"""What long work says of itself, on a terminal and in a log."""

import fcntl
import io
import math
import os
import pty
import re
import struct
import sys
import termios
import time

import pytest

from cache_tools.progress import duration, show_progress

LINE = re.compile(r"fill: (\d) of 4, +[\d.?]+(?:shard/s|s/shard), 00:00 gone, (?:00:00|\?) left")


def test_a_log_has_lines_and_no_bar_drawn_over_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in show_progress(range(4), "fill", "shard", seconds=0.02):
        time.sleep(0.03)
    out, log = capsys.readouterr()
    matches = [LINE.fullmatch(line) for line in log.splitlines()]
    assert out == "" and "\r" not in log and all(matches), log
    counts = [int(match[1]) for match in matches if match]
    assert counts == sorted(counts) and counts[-1] == 4 and len(counts) >= 3


@pytest.mark.parametrize("ends", [True, False])
def test_short_work_says_nothing_in_a_log(ends: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(what="fill", unit="shard", total=2 if ends else None) as bar:
        bar.update()
        bar.set_postfix({"loss": "1.2"}, refresh=False)
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_work_without_an_end_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(what="read", unit="tok", unit_scale=True, seconds=0.01) as bar:
        for _ in range(2):
            time.sleep(0.02)
            bar.update(6000)
    assert re.search(r"^read: 12\.0k, +[\d.]+k?tok/s, 00:00 gone$", capsys.readouterr().err, re.MULTILINE)


def test_a_total_that_is_known_later_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(what="fill", unit="shard", total=math.inf, seconds=0.01) as bar:
        time.sleep(0.02)
        bar.total = 4
        bar.update(2)
    assert LINE.fullmatch(capsys.readouterr().err.splitlines()[-1])


def test_a_terminal_has_a_bar_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        for _ in show_progress(range(2), "fill", "shard"):
            pass
        monkeypatch.undo()
        drawn = ""
        while "2/2 [" not in drawn:
            drawn += os.read(ours, 4096).decode()
    os.close(ours)
    assert "\rfill:   0%|" in drawn


def test_nothing_is_said_where_another_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    assert list(show_progress(range(2), "fill", "shard", seconds=0, disable=True)) == [0, 1]
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (48 * 3600, "2.0 days")],
)
def test_a_duration_is_said_in_the_unit_that_suits_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
