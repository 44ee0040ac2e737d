"""Rehearse a build with a teacher of full size on a CPU: memory and seconds to know before a first try on a GPU.

The teacher has random weights in float16 and in a pytorch_model.bin, as AfroXLMR-large's are. That of mmBERT's shape
has a tokenizer of Gemma's kind, and a config.json whose cls is not the tokenizer's, as mmBERT's. The text is the
sample's, about 12,000 tokens in three views.

    python benchmarks/rehearsal.py --output rehearsal.json
    python benchmarks/rehearsal.py --teacher ModernBERT --output rehearsal.json
"""

import json
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from floor import SAMPLE
from gpu_build import MODELS, SHARPER
from main_job import run
from transformers import set_seed

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "tests")]

from helpers.tiny_teachers import MMBERT_IDS, gemma_tokenizer

from cache_tools import open_cache

VIEWS = 3
PIECES = 2000  # with which the text has about as many tokens as with the sample's tokenizer


def write_teacher(folder: Path, name: str) -> None:
    """Weights of full size with a tokenizer that knows only the first few thousand tokens."""
    set_seed(0)
    model = MODELS[name](False).half()
    if name == "ModernBERT":
        folder.mkdir()
        gemma_tokenizer(folder, SAMPLE / "text.txt", PIECES)
        model.config.update(MMBERT_IDS)
    else:
        ours = shutil.ignore_patterns("model.safetensors", "config.json")
        shutil.copytree(SAMPLE / "teacher", folder, ignore=ours)
    model.get_output_embeddings().weight.data *= SHARPER
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def rehearse(folder: Path, name: str) -> dict[str, Any]:
    write_teacher(folder / "teacher", name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, said = run(
        "cache_tools", "build", "--lang", "kin", "--text", str(SAMPLE / "text.txt"), "--teacher", "teacher",
        "--weak-teacher", "--views", str(VIEWS), "--device", "cpu", "--out", "kin.zarr", folder=folder,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cache = open_cache(folder / "kin.zarr")
    cache.require_complete()
    return {
        "rows": cache.recipe.train_rows + cache.recipe.validation_rows,
        "tokens": VIEWS * cache.provenance["text_tokens"],
        "seconds": round(seconds),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "peak_mib": round(after.ru_maxrss / 1024),  # of the largest child so far
        "said": said.splitlines()[-1],
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--teacher", type=click.Choice(list(MODELS)), default="XLM-R", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default="rehearsal.json", show_default=True)
def main(teacher: str, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = {"teacher": teacher, "torch": torch.__version__} | rehearse(Path(folder), teacher)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    output.write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
