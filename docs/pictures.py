"""Draws maps.svg beside itself: attention of teacher and student on a row that it was not trained on.

comet-cache build --lang kin --teacher ../shared/teacher --text ../shared/data/text/kin.txt.xz --max-tokens 400000
comet-train --cache kin.zarr --vocabulary full --steps 300
python docs/pictures.py --cache kin.zarr --student kin-student
"""

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from transformers import AutoModelForMaskedLM

from cache_tools import Cache, open_cache
from cache_tools.text.tokenizer import load_tokenizer
from comet.report.analysis import MapPair, look_at_rows
from comet.report.charts import heat_map
from comet.train.dataset import shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT

HERE = Path(__file__).parent
SIDE, GAP, LINE = 170, 14, 14
STYLE = "text{font:13px system-ui,sans-serif;fill:#1f2933}.small{font-size:11px;fill:#5b6470}"


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{STYLE}</style>'
        '<rect width="100%" height="100%" fill="#fff"/>' + "\n".join(parts) + "</svg>\n"
    )


def maps(pairs: Sequence[MapPair]) -> str:
    """A column for each student layer, its teacher's layer above it, both on one scale."""
    parts = []
    for column, pair in enumerate(pairs):
        x, most = 80 + column * (SIDE + GAP), float(max(pair.teacher.max(), pair.student.max())) ** 0.5
        for row, (values, layer) in enumerate(((pair.teacher, pair.teacher_layer), (pair.student, pair.student_layer))):
            y, picture = 12 + row * (SIDE + 28), heat_map(values.clip(0) ** 0.5, most)
            place = f'x="{x}" y="{y}" width="{SIDE}" height="{SIDE}"'
            captions = [f"layer {layer}", f"{pair.overlap:.0%} on the same blocks"][: row + 1]
            parts += [
                f'<rect {place} fill="#f4f6f8"/><image {place} style="image-rendering:pixelated" href="{picture}"/>',
                *(
                    f'<text class="small" x="{x}" y="{y + SIDE + 15 + n * LINE}">{caption}</text>'
                    for n, caption in enumerate(captions)
                ),
            ]
    for row, name in enumerate(("teacher", "student")):
        parts.append(f'<text x="12" y="{12 + row * (SIDE + 28) + SIDE / 2}">{name}</text>')
    return svg(80 + len(pairs) * (SIDE + GAP), 2 * (SIDE + 28) + 12 + LINE, parts)


def map_pairs(cache: Cache, folder: Path) -> list[MapPair]:
    """Of the first validation row."""
    student = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager")
    distiller = Distiller(student, cache.recipe, DEFAULT).eval()
    tokenizer, shards = load_tokenizer(cache.tokenizer_folder), shards_of([cache], "validation")
    with torch.no_grad():
        pairs, _ = look_at_rows(distiller, shards, tokenizer, torch.device("cpu"))
    return [pair for pair in pairs if pair.row == pairs[0].row]


@click.command(help=__doc__.split("\n")[0])
@click.option("--cache", type=click.Path(path_type=Path), required=True)
@click.option("--student", type=click.Path(path_type=Path), required=True, help="Trained from it, full vocabulary.")
def main(cache: Path, student: Path) -> None:
    (HERE / "maps.svg").write_text(maps(map_pairs(open_cache(cache), student)), encoding="utf-8")


if __name__ == "__main__":
    main()
