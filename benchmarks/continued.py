"""Test whether views that the teacher continues help where there is little text.

Compared with plain views of the same text at equal rows, steps, shape and start, for students with the tokens of the
rows and with all tokens; measured on unseen text.

    python benchmarks/continued.py --shared ../shared --folder continued
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from quality import cache_of, finished
from quality_measures import Unseen, log_probs, training_lines, unseen_text
from start import as_config
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache
from cache_tools.settings import MOST_VIEWS
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.settings import StudentConfig

CACHES = ("default", "views that the teacher continues")
VOCABULARIES = ("trimmed", "full")
UNSEEN_ROWS = 150
LAYERS, WIDTH = 6, 96
STEPS = {3_000: 400, 30_000: 500, 300_000: 900}  # by tokens of text


def first_lines(shared: Path, language: str, teacher: str, tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    chosen: list[str] = []
    for line in training_lines(shared, language).split("\n"):
        tokens -= len(tokenizer(line, add_special_tokens=False)["input_ids"])
        chosen.append(line)
        if tokens <= 0:
            break
    return "\n".join(chosen)


def trained(
    cache: Cache, vocabulary: str, steps: int, seed: int, output: Path, unseen: Unseen, of_text: torch.Tensor
) -> dict[str, Any]:
    """Train a student and return its measures on `unseen`, whose tokens are all of the teacher's: its best token beside
    the true one and the teacher's; and its KL among the tokens `of_text`, at targets of these."""
    shape = output.with_suffix(".shape.json")
    shape.write_text(json.dumps(as_config(LAYERS, WIDTH, cache.recipe.teacher_heads, 4 * WIDTH)))
    config = StudentConfig(
        output, student=str(shape), vocabulary=vocabulary, steps=steps, validate_steps=steps, seed=seed
    )
    result = distill([cache], config)
    model = AutoModelForMaskedLM.from_pretrained(output, attn_implementation="sdpa").eval()
    own = result.vocabulary.student_id
    inputs = own[unseen.inputs]
    unknown = load_tokenizer(cache.tokenizer_folder).unk_token_id
    inputs = torch.where(inputs < 0, int(own[int(unknown)]), inputs)
    known = unseen.seen[own[unseen.seen] >= 0]
    logprob = log_probs(model, inputs, unseen.target, own[known])
    best = known[logprob.argmax(1)]
    among = torch.isin(unseen.truth, of_text)
    reference, student = (
        values[among][:, torch.searchsorted(ids, of_text)].log_softmax(1)
        for values, ids in ((unseen.logprob, unseen.seen), (logprob, known))
    )
    return {
        "parameters": result.parameters,
        "rows": cache.recipe.train_rows,
        "accuracy": (best == unseen.truth).float().mean().item(),
        "agreement": (best == unseen.seen[unseen.logprob.argmax(1)]).float().mean().item(),
        "kl_of_text": (reference.exp() * (reference - student)).sum(1).mean().item(),
    }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches and results, to continue from.")
@click.option("--language", default="kin", show_default=True)
@click.option("--tokens", "sizes", type=int, multiple=True, default=tuple(STEPS), show_default=True)
@click.option("--vocabulary", "vocabularies", multiple=True, default=VOCABULARIES, show_default=True)
@click.option("--views", type=int, help="Of the caches.  [default: as many as make two million tokens]")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    shared: Path, folder: Path, language: str, sizes: tuple[int, ...], vocabularies: tuple[str, ...],
    views: int | None, seeds: tuple[int, ...], threads: int,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    teacher = str(shared / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    every = np.setdiff1d([*tokenizer.get_vocab().values()], tokenizer.all_special_ids)
    unseen = unseen_text(language, shared, teacher, every, UNSEEN_ROWS)
    right = (unseen.seen[unseen.logprob.argmax(1)] == unseen.truth).float().mean()
    print(f"the teacher: accuracy {right:.1%} of {len(unseen.truth):,} targets")
    for tokens in sizes:
        work, steps = folder / str(tokens), STEPS[tokens]
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{language}.txt").write_text(first_lines(shared, language, teacher, tokens), "utf-8")
        count = views or min(2_000_000 // tokens, MOST_VIEWS)
        caches = [cache_of(name, language, shared, teacher, work, 10**9, count) for name in CACHES]
        of_text = torch.from_numpy(caches[0].vocabulary.id.astype("int64"))
        for name, cache in zip(CACHES, caches, strict=True):
            for vocabulary, seed in ((one, seed) for one in vocabularies for seed in seeds):
                output = work / f"{cache.root.stem}-{vocabulary}-{seed}"
                asked = {"tokens": tokens, "views": count, "steps": steps}
                found = finished(
                    output.with_suffix(".json"), asked,
                    partial(trained, cache, vocabulary, steps, seed, output, unseen, of_text),
                )  # fmt: skip
                print(
                    f"{tokens:,} tokens, {count} views, {found['rows']} rows, {steps} steps, seed {seed}, {name}, "
                    f"{vocabulary}, {found['parameters']:,} parameters: accuracy {found['accuracy']:.1%}, same best "
                    f"token {found['agreement']:.1%}, KL among the text's tokens {found['kl_of_text']:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
