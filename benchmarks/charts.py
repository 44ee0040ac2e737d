"""Line charts with a legend as SVG files that stand alone, for RESULTS.md; both axes by powers of two."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from comet.report.charts import HEIGHT, WIDTH, Line, Point, line_chart, number

COLOURS = ("#2469c4", "#c2570c", "#137a3f", "#8a3ffc", "#b8860b", "#c4245f", "#0f8a8a", "#5b6470", "#111111")
LEGEND = 290


def draw(path: Path, title: str, lines: Mapping[str, Sequence[Point]], x_name: str, y_name: str) -> None:
    """One line for each name through its points, all above 0. Raises ValueError for more lines than colours."""
    if len(lines) > len(COLOURS):
        raise ValueError(f"{path}: {len(lines)} lines, expected at most {len(COLOURS)}")
    kinds = {name: f"line{index}" for index, name in enumerate(lines)}
    logs = [
        Line(kinds[name], name, [(math.log2(x), math.log2(y)) for x, y in points], dots=True)
        for name, points in lines.items()
    ]
    every = [point for line in logs for point in line.points]
    ranges = [(math.floor(min(axis)), math.ceil(max(axis))) for axis in zip(*every, strict=True)]
    chart = line_chart(title, logs, x_name, ranges[0], ranges[1], lambda log: number(round(2**log, 3)))
    style = "".join(
        f".{kind}{{stroke:{colour}}}.dot.{kind}{{fill:{colour};stroke:#fff}}"
        for kind, colour in zip(kinds.values(), COLOURS, strict=False)
    )
    legend = "".join(
        f'<rect x="{WIDTH + 6}" y="{46 + 18 * index}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{WIDTH + 22}" y="{55 + 18 * index}">{escape(name)}</text>'
        for index, (name, colour) in enumerate(zip(kinds, COLOURS, strict=False))
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEGEND} {HEIGHT + 36}" '
        f'font-family="system-ui,sans-serif" font-size="11"><style>.line{{fill:none;stroke-width:2}}'
        f".grid{{stroke:#e3e6ea}}text{{fill:#5b6470}}{style}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="12" y="16" font-weight="600">{escape(title)}</text>'
        f'<text x="12" y="30" font-size="10">{escape(y_name)}</text>'
        f'<svg y="36" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">{chart}</svg>{legend}</svg>',
        encoding="utf-8",
    )
