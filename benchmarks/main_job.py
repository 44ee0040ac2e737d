"""The main job on three inputs: the shipped sample, real text with a real teacher, and XLM-R's real vocabulary.

Prints a table and writes JSON. The last two need the shared data (`--shared`), which is not part of the project.

    python benchmarks/main_job.py --shared ../shared --output main_job.json
"""

import json
import lzma
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed

REPOSITORY = Path(__file__).parents[1]
EVALUATION_ROWS, ROW_TOKENS, MASK_PROB = 120, 126, 0.15


def run(*arguments: str, folder: Path) -> tuple[float, str]:
    """Seconds and output of one command of the project, in a process of its own."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr}")
    return time.monotonic() - started, done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def peak_mib_of_children() -> float:
    """The largest resident set of any child process so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def sample(folder: Path) -> dict[str, object]:
    build, _ = run("cache_tools", "build", "--lang", "kin", "--sample", folder=folder)
    train, output = run("comet", "train", "--cache", "kin.zarr", folder=folder)
    return {"build_seconds": round(build, 1), "train_seconds": round(train, 1), "last_lines": output.splitlines()[-11:]}


def real_text(folder: Path, shared: Path) -> dict[str, object]:
    text, teacher = str(shared / "data/text/kin.txt.xz"), str(shared / "teacher")
    build, _ = run(
        "cache_tools", "build", "--lang", "kin", "--text", text, "--teacher", teacher, "--max-tokens", "500000",
        "--out", "kin.zarr", folder=folder,
    )  # fmt: skip
    train, _ = run(
        "comet",
        "train",
        "--cache",
        "kin.zarr",
        "--vocabulary",
        "full",
        "--output",
        "student",
        "--steps",
        "300",
        folder=folder,
    )
    return {"build_seconds": round(build), "train_seconds": round(train)} | dense_kl(folder / "student", shared)


def dense_kl(student: Path, shared: Path) -> dict[str, object]:
    """KL(teacher ‖ student) over the whole vocabulary at the masked positions of AfriSenti's Kinyarwanda dev tweets,
    which neither model has seen, for the student and for untrained ones of its shape."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "teacher")
    lines = lzma.decompress((shared / "data/afrisenti/kin/dev.tsv.xz").read_bytes()).decode().split("\n")[1:]
    tweets = [max(line.split("\t"), key=len) for line in lines if line]
    stream = [i for ids in tokenizer(tweets, add_special_tokens=False)["input_ids"] for i in [*ids, 2]]
    starts = range(0, len(stream) - ROW_TOKENS, ROW_TOKENS)
    rows = torch.tensor([[0, *stream[s : s + ROW_TOKENS], 2] for s in starts][:EVALUATION_ROWS])
    target = (torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < MASK_PROB) & (rows > 3)
    inputs = rows.masked_fill(target, tokenizer.mask_token_id)

    @torch.no_grad()
    def log_probs(model: XLMRobertaForMaskedLM) -> Tensor:
        """[targets, V]"""
        model.eval()
        parts = zip(inputs.split(16), target.split(16), strict=True)
        return torch.cat([model(i).logits[t].float().log_softmax(-1) for i, t in parts])

    teacher = log_probs(AutoModelForMaskedLM.from_pretrained(shared / "teacher", dtype=torch.float32))

    def kl(model: XLMRobertaForMaskedLM) -> float:
        return (teacher.exp() * (teacher - log_probs(model))).sum(1).mean().item()

    trained = kl(AutoModelForMaskedLM.from_pretrained(student))
    set_seed(0)
    untrained = kl(XLMRobertaForMaskedLM(AutoModelForMaskedLM.from_pretrained(student).config))
    return {
        "targets": len(teacher),
        "dense_kl_student": round(trained, 3),
        "dense_kl_untrained": round(untrained, 3),
        "ratio": round(trained / untrained, 3),
    }


def real_vocabulary(folder: Path, shared: Path) -> dict[str, object]:
    teacher = folder / "teacher"
    teacher.mkdir()
    source = shared / "data/xlm-roberta-tokenizer"
    (teacher / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    shutil.copyfile(source / "tokenizer_config.json", teacher / "tokenizer_config.json")
    set_seed(0)
    config = XLMRobertaConfig(
        vocab_size=250_002, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaForMaskedLM(config).save_pretrained(teacher)
    text = str(shared / "data/text/kin.txt.xz")
    build, _ = run(
        "cache_tools", "build", "--lang", "kin", "--text", text, "--teacher", str(teacher), "--weak-teacher",
        "--max-tokens", "60000", "--out", "kin.zarr", folder=folder,
    )  # fmt: skip
    build_peak = peak_mib_of_children()
    train, _ = run(
        "comet", "train", "--cache", "kin.zarr", "--student", "comet", "--init", "cache", "--vocabulary", "full",
        "--batch-size", "32", "--steps", "8", "--output", "student", folder=folder,
    )  # fmt: skip
    return {
        "build_seconds": round(build),
        "build_peak_mib": round(build_peak),
        "train_seconds": round(train),
        "peak_mib": round(peak_mib_of_children()),
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--shared", type=click.Path(exists=True, path_type=Path), help="Folder of the shared data.")
@click.option("--output", type=click.Path(path_type=Path), default="main_job.json", show_default=True)
def main(shared: Path | None, output: Path) -> None:
    results: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    jobs = {"real vocabulary": real_vocabulary, "real text": real_text} if shared else {}
    for name, job in jobs.items():  # memory first: the peak is the largest of all children so far
        with tempfile.TemporaryDirectory() as folder:
            results[name] = job(Path(folder), shared.resolve())
    with tempfile.TemporaryDirectory() as folder:
        results["sample"] = sample(Path(folder))
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
