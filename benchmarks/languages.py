"""Compare one student of several languages with one student of each, of the same shape and the same steps in total.

Dense KL, loss and accuracy on unseen text of each language, KL before the first step, and the parameters of all files.

    python benchmarks/languages.py --shared ../shared --folder languages
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from quality import cache_of, finished
from quality_measures import dense_measures, unseen_text
from start import as_config
from transformers import AutoModelForMaskedLM

from cache_tools import Cache
from cache_tools.text.tokenizer import load_tokenizer
from comet.distillation import distill
from comet.settings import StudentConfig
from comet.student.model import new_student
from comet.student.shape import choose_shape
from comet.student.vocabulary import trimmed_vocabulary
from comet.train.dataset import shards_of, student_collator
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.validation import validate, validation_rows

LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
UNSEEN_ROWS, BATCH_ROWS = 150, 32
CPU = torch.device("cpu")


def trained(caches: dict[str, Cache], shape: Path, steps: int, output: Path, shared: Path, teacher: str) -> Any:
    """Train one student on these caches; return its size, seconds, and measures in each of their languages."""
    config = StudentConfig(output, student=str(shape), steps=steps, validate_steps=steps, dtype="float32")
    result = distill(list(caches.values()), config)
    model = AutoModelForMaskedLM.from_pretrained(output, attn_implementation="sdpa").eval()
    found: dict[str, Any] = {"parameters": result.parameters, "training_seconds": result.seconds}
    for language, cache in caches.items():
        unseen = unseen_text(language, shared, teacher, cache.vocabulary.id, UNSEEN_ROWS)
        unknown = load_tokenizer(cache.tokenizer_folder).unk_token_id
        found[language] = dense_measures(model, result.vocabulary, unseen, int(unknown))
    return found


def kl_at_the_start(caches: dict[str, Cache], shape: Path) -> dict[str, float]:
    """Return the validation KL in each language of a student of these caches before its first step."""
    of_all = list(caches.values())
    vocabulary = trimmed_vocabulary(of_all)
    student = new_student(
        choose_shape(str(shape), of_all[0].recipe, len(vocabulary)), of_all, vocabulary, 0.0, 0, "start"
    )
    distiller, collator = (
        Distiller(student, of_all[0].recipe, DEFAULT, vocabulary),
        student_collator(of_all[0].recipe, vocabulary),
    )
    shards = shards_of(of_all, "validation")
    return {
        language: validate(
            distiller, validation_rows([s for s in shards if s.corpus == corpus]), BATCH_ROWS, CPU, collator
        ).kl
        for corpus, language in enumerate(caches)
    }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), required=True, help="The shared data.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Caches and results, to continue from.")
@click.option("--language", "languages", multiple=True, default=LANGUAGES, show_default=True)
@click.option("--tokens", default=400_000, show_default=True, help="Of each language.")
@click.option("--views", type=int, help="Of the caches.  [default: as a build chooses them]")
@click.option("--steps", default=900, show_default=True, help="Of a student of one language.")
@click.option("--layers", default=6, show_default=True)
@click.option("--width", default=96, show_default=True)
def main(
    shared: Path, folder: Path, languages: Sequence[str], tokens: int, views: int | None, steps: int, layers: int,
    width: int,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    teacher = str(shared / "teacher")
    caches = {one: cache_of("default", one, shared, teacher, folder, tokens, views) for one in languages}
    shape = folder / f"{layers}x{width}.json"
    heads = caches[languages[0]].recipe.teacher_heads
    shape.write_text(json.dumps(as_config(layers, width, heads, 4 * width)))
    asked = {"tokens": tokens, "views": views, "steps": steps, "shape": shape.name, "threads": torch.get_num_threads()}

    def measured(names: Sequence[str]) -> Any:
        name = "-".join(names)
        chosen = {one: caches[one] for one in names}
        total = steps * len(names)
        path = folder / f"student-{name}.json"
        return finished(path, asked, lambda: trained(chosen, shape, total, folder / f"student-{name}", shared, teacher))

    begun = kl_at_the_start(caches, shape)
    for one in languages:
        own = kl_at_the_start({one: caches[one]}, shape)[one]
        print(f"{one}: validation KL before the first step alone {own:.3f}, together {begun[one]:.3f}")
    alone = {one: measured([one]) for one in languages}
    together = measured(languages)
    for one in languages:
        own, joint = alone[one][one], together[one]
        print(
            f"{one}: dense KL alone {own['dense_kl']:.4f}, together {joint['dense_kl']:.4f} "
            f"({joint['dense_kl'] / own['dense_kl']:.3f}); loss {own['loss']:.3f}, {joint['loss']:.3f}; accuracy "
            f"{own['accuracy']:.1%}, {joint['accuracy']:.1%}"
        )
    sizes = sum(found["parameters"] for found in alone.values())
    seconds = sum(found["training_seconds"] for found in alone.values())
    print(
        f"parameters {together['parameters']:,} against {sizes:,} of {len(languages)} files; training "
        f"{together['training_seconds']:.0f} s against {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
