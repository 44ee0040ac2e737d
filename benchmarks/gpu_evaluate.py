"""The part of gpu.py that evaluates: the fine-tuning of comet-eval, on the device and on the CPU."""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from floor import SAMPLE, seconds
from gpu_build import Run
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, set_seed

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "tests")]

from helpers.small_tasks import write_topics

from comet.evaluate.datasets import TaskData, load_task
from comet.evaluate.finetuning import FineTuning, default_learning_rate, encode, fine_tune, load_for_task, predict
from comet.evaluate.tasks import find_task

LAYERS, HIDDEN, HEADS = 6, 256, 4  # the paper's student
BATCH_SIZE, EPOCHS, TESTED = 16, 2, 64


def fine_tuning(run: Run) -> dict[str, Any]:
    """Steps per second of comet-eval's Trainer on the device and on the CPU, its start included, and the accuracy that
    a model of random weights has after them. It tells sentences of two topics, about 20 tokens each, apart."""
    write_model(run.folder / "model")
    last = BATCH_SIZE * run.batches
    folder = write_topics(run.folder / "topics", {"train": (0, last), "test": (last, last + TESTED)})
    data = load_task(find_task("sib200"), "kin", folder)
    found = {name: on(device, run, data) for name, device in (("device", run.device), ("cpu", torch.device("cpu")))}
    return {
        "steps": EPOCHS * run.batches,
        "device_to_cpu": round(found["device"]["steps_per_second"] / found["cpu"]["steps_per_second"], 2),
        **found,
    }


def write_model(folder: Path) -> None:
    """A student with the sample's tokenizer and all its 8,000 tokens."""
    shutil.copytree(SAMPLE / "teacher", folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = XLMRobertaConfig.from_pretrained(
        folder, num_hidden_layers=LAYERS, hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=4 * HIDDEN,
        dtype="float32",
    )  # fmt: skip
    set_seed(0)
    XLMRobertaForMaskedLM(config).save_pretrained(folder)


def on(device: torch.device, run: Run, data: TaskData) -> dict[str, float]:
    """Fine-tune once to warm up, then again from the start."""
    task, elapsed = data.task, 0.0
    how = FineTuning(EPOCHS, BATCH_SIZE, default_learning_rate(HIDDEN, task.tagging))
    for _ in range(2):
        model, tokenizer = load_for_task(str(run.folder / "model"), task, seed=0)
        train, test = (encode(tokenizer, part.examples, task, task.max_length) for part in (data.train, data.reported))
        elapsed = seconds(lambda m=model, t=train: fine_tune(m, t, task, how, 0, device, "model"), device)
    predicted = predict(model, test, task, TESTED, device)
    right = sum(list(gold) == label for gold, label in zip(test.labels, predicted, strict=True))
    return {"steps_per_second": round(EPOCHS * run.batches / elapsed, 2), "accuracy": round(right / TESTED, 3)}
