"""The drawings: ranges and ticks, and a PNG that decodes to what went in."""

import base64
import math
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comet.report.charts import (
    HEIGHT,
    WIDTH,
    Line,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    number,
    percent,
    ticks,
    whole,
    widen,
)

finite = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@settings(deadline=None, max_examples=200)
@given(st.lists(finite, min_size=1, max_size=20))
def test_a_range_holds_the_values_and_ends_on_ticks(values: list[float]) -> None:
    low, high = widen(values)
    marks = ticks(low, high)
    slack = 1e-6 * (high - low)
    assert low < high and low - slack <= min(values) and max(values) <= high + slack
    assert 2 <= len(marks) <= 7
    assert marks[0] == pytest.approx(low, abs=slack) and marks[-1] == pytest.approx(high, abs=slack)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0.6, [0, 0.2, 0.4, 0.6]), (10, 870, [200, 400, 600, 800])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_tick_labels_are_short() -> None:
    assert [number(v) for v in (0.25, 3.0, 1500, 20_000, 3e6, 2.5e9)] == ["0.25", "3", "1.5k", "20k", "3M", "2.5G"]
    assert [percent(v) for v in (0.0, 0.005, 0.2, 3 * 0.2, 1.0)] == ["0%", "0.5%", "20%", "60%", "100%"]
    assert [whole(v) for v in (0.5, 2.0)] == ["", "2"]


def test_a_line_goes_through_its_points() -> None:
    chart = line_chart("a & b", [Line("student", "x", [(0.0, 1.0), (10.0, 2.0)])], "step", mark=((10.0, 2.0), "best"))
    svg = ElementTree.fromstring(chart)
    assert svg.get("aria-label") == "a & b"
    path = next(p for p in svg.iter("path") if p.get("class") == "line student").get("d", "")
    (x0, y0), (x1, y1) = ([float(n) for n in point.split()] for point in path[1:].split("L"))
    assert 0 < x0 < x1 < WIDTH and 0 < y1 < y0 < HEIGHT
    best = next(c for c in svg.iter("circle") if c.get("class") == "dot best")
    assert (float(best.get("cx", 0)), float(best.get("cy", 0))) == (x1, y1)


def test_one_point_is_a_dot_and_a_constant_a_line() -> None:
    single = ElementTree.fromstring(line_chart("x", [Line("student", "x", [(5.0, 3.0)])], "step"))
    assert len(list(single.iter("circle"))) == 1
    flat = line_chart("x", [Line("student", "x", [(0.0, 0.0), (1.0, 0.0)])], "step")
    assert "nan" not in flat and "inf" not in flat


def test_bars_are_as_high_as_their_values() -> None:
    series = [Series("student", "s", [1.0, 2.0], ["<one>", "two"]), Series("teacher", "t", [0.0, 4.0])]
    svg = ElementTree.fromstring(bar_chart("bars", [("a", "n"), ("b", "n")], series, "what"))
    assert [r.get("class") for r in svg.iter("rect")] == ["bar student", "bar teacher"] * 2
    one, none, two, four = (float(r.get("height", 0)) for r in svg.iter("rect"))
    assert none == 0 and two == pytest.approx(2 * one, abs=0.2) and four == pytest.approx(4 * one, abs=0.3)
    assert [t.text for t in svg.iter("title")] == ["<one>", "two"]


def decode(address: str) -> np.ndarray:
    """Opacity of the pixels of a palette PNG without filters, every chunk's checksum tested."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, rest) == (8, 3, [0, 0, 0]) and len(chunks[b"PLTE"]) == 3 * 256
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (lines[:, 0] == 0).all()
    return np.frombuffer(chunks[b"tRNS"], np.uint8)[lines[:, 1:]]


def test_a_heat_map_decodes_to_its_values() -> None:
    values = np.random.default_rng(0).random((5, 7))
    np.testing.assert_allclose(decode(heat_map(values, 1.0)) / 255, values, atol=0.5 / 255 + 1e-9)
    assert decode(heat_map(values, 0.0)).max() == 0
    assert decode(heat_map(values, math.nan)).max() == 0
    assert decode(heat_map(2 * np.ones((1, 1)), 1.0)).tolist() == [[255]]
