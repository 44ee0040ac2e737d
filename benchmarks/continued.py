"""Whether views that the teacher continues help where there is little text: against plain views of the same text, with
equal rows, bytes and steps, the same shape and start; dense KL on unseen text.

    python benchmarks/continued.py --shared ../shared --folder continued
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
from quality import cache_of, finished
from quality_measures import Unseen, dense_measures, training_lines, unseen_text
from start import as_config
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache
from cache_tools.settings import MOST_VIEWS
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.settings import StudentConfig

CACHES = ("default", "views that the teacher continues")
UNSEEN_ROWS = 150
LAYERS, WIDTH = 6, 96
STEPS = {3_000: 400, 30_000: 900, 300_000: 900}  # by tokens of text


def first_lines(shared: Path, language: str, teacher: str, tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    chosen: list[str] = []
    for line in training_lines(shared, language).split("\n"):
        tokens -= len(tokenizer(line, add_special_tokens=False)["input_ids"])
        chosen.append(line)
        if tokens <= 0:
            break
    return "\n".join(chosen)


def trained(cache: Cache, steps: int, seed: int, output: Path, unseen: Unseen) -> dict[str, Any]:
    shape = output.with_suffix(".shape.json")
    shape.write_text(json.dumps(as_config(LAYERS, WIDTH, cache.recipe.teacher_heads, 4 * WIDTH)))
    config = StudentConfig(output, student=str(shape), steps=steps, validate_steps=steps, seed=seed)
    result = distill([cache], config)
    model = AutoModelForMaskedLM.from_pretrained(output, attn_implementation="sdpa").eval()
    unknown = load_tokenizer(cache.tokenizer_folder).unk_token_id
    return {"rows": cache.recipe.train_rows} | dense_measures(model, result.vocabulary, unseen, int(unknown))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches and results, to go on from.")
@click.option("--language", default="kin", show_default=True)
@click.option("--tokens", "sizes", type=int, multiple=True, default=tuple(STEPS), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
def main(shared: Path, folder: Path, language: str, sizes: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    teacher = str(shared / "teacher")
    for tokens in sizes:
        work, steps = folder / str(tokens), STEPS[tokens]
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{language}.txt").write_text(first_lines(shared, language, teacher, tokens), "utf-8")
        views = min(2_000_000 // tokens, MOST_VIEWS)
        for name in CACHES:
            cache = cache_of(name, language, shared, teacher, work, 10**9, views)
            unseen = unseen_text(language, shared, teacher, cache, UNSEEN_ROWS)
            for seed in seeds:
                output = work / f"{cache.root.stem}-{seed}"
                asked = {"tokens": tokens, "views": views, "steps": steps}
                found = finished(
                    output.with_suffix(".json"), asked, partial(trained, cache, steps, seed, output, unseen)
                )
                print(
                    f"{tokens:,} tokens, {views} views, {found['rows']} rows, {steps} steps, seed {seed}, {name}: "
                    f"dense KL {found['dense_kl']:.4f}, accuracy {found['accuracy']:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
