"""`comet-eval`: fine-tune models on a task with several seeds; measure their scores, sizes and latencies."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cache_tools.errors import CometError
from cache_tools.models import max_positions, weights_sha256
from cache_tools.places.destinations import writing
from cache_tools.text.hub import at_commit
from cache_tools.text.model_tokenizer import save_tokenizer
from comet.evaluate.datasets import TaskData
from comet.evaluate.finetuning import (
    FineTuning,
    default_learning_rate,
    encode,
    fine_tune,
    load_for_task,
    model_files,
    predict,
)
from comet.evaluate.preparation import Preparation, prepare
from comet.evaluate.results import ModelResult, Run, add_to_results, open_results
from comet.evaluate.scoreboard import (
    best_candidate,
    data_warnings,
    finetuned_card,
    long_items_line,
    measured_line,
    plan_line,
    run_line,
    score_page,
    time_left_line,
)
from comet.evaluate.settings import EvaluationSettings
from comet.evaluate.tasks import Task
from comet.publish import published_folder

LATENCY_TEXTS = 24
LATENCY_ROUNDS = 3
PREDICT_BATCH = 32

FineTuned = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Evaluation:
    """The outcome: the data, the models in the order of the settings, the results file and the page."""

    data: TaskData
    models: tuple[ModelResult, ...]
    results: Path
    page: Path


def evaluate(settings: EvaluationSettings, say: Callable[[str], None] = print) -> Evaluation:
    """Fine-tune and score every model with every seed that is missing from the results file.

    Writes the results file after every run, a page beside it at the end, and the best fine-tuned model to `output`.
    Raises CometError for wrong options, unusable data or models, a results file of other settings, and places where
    nothing can be written; all of these before the first model is fine-tuned.
    """
    (prepared,) = prepare([settings])
    return evaluate_prepared(prepared, say)


def evaluate_prepared(prepared: Preparation, say: Callable[[str], None] = print) -> Evaluation:
    """Evaluate as `evaluate` does, in one of the languages that were prepared together."""
    settings, data, empty, device = prepared.settings, prepared.data, prepared.empty, prepared.device
    path = settings.results_path
    results = open_results(path, empty.subject, empty.gold)  # with what other evaluations have added meanwhile
    for line in (measured_line(data), *data_warnings(data)):
        say(line)
    pinned = {name: at_commit(name, model_files(name)) for name in settings.models}
    found = {model.sha256: results.with_runs(model) for model in _measure_models(settings, data, pinned, say)}
    missing = [(model, seed) for model in found.values() for seed in model.missing(settings.seeds)]
    if missing:
        say(plan_line(settings, len(missing)))
    for number, (model, seed) in enumerate(missing):
        run, _ = _run_once(pinned[model.name], model, data, seed, device)
        found[model.sha256] = found[model.sha256].with_run(run)
        add_to_results(path, empty, found[model.sha256])
        say(run_line(data.task, model, run))
        if number == 0 and len(missing) > 1:
            say(time_left_line(run.seconds / model.latency_ms, [other.latency_ms for other, _ in missing[1:]]))
    for model in found.values():
        add_to_results(path, empty, model)
    finished = [model.of_seeds(range(settings.seeds)) for model in found.values()]
    evaluation = Evaluation(data, tuple(finished), path, settings.page_path)
    with writing(evaluation.page, f"all runs are in {path}; make room, then run the same command again"):
        evaluation.page.write_text(score_page(data, finished), encoding="utf-8")
    if settings.output is not None:
        say(_save_best(settings.output, data, finished, pinned, device))
    return evaluation


def _measure_models(
    settings: EvaluationSettings, data: TaskData, pinned: dict[str, str], say: Callable[[str], None]
) -> list[ModelResult]:
    """Return identity, size and latency of each model, without runs, and say which items are longer than its rows.

    Raises CometError if a model is unusable: before the first is fine-tuned, which may take hours.
    """
    task, results, inputs = data.task, [], []
    loaded = [load_for_task(pinned[name], task, seed=0) for name in settings.models]
    spread = data.reported.examples[:: max(1, len(data.reported.examples) // LATENCY_TEXTS)][:LATENCY_TEXTS]
    for name, (model, tokenizer) in zip(settings.models, loaded, strict=True):
        length = _max_length(settings, task, name, model, tokenizer)
        reported = encode(tokenizer, data.reported.examples, task, length)
        rows = tokenizer.model_max_length  # of a student those of its cache, of other models usually all they can read
        if longer := sum(len(one["input_ids"]) > rows for one in reported.inputs):
            say(long_items_line(name, rows, longer, data.reported, length))
        texts = encode(tokenizer, spread, task, length)
        inputs.append([texts.collate([text]) for text in texts.inputs])
        rate = settings.learning_rate or default_learning_rate(model.config.hidden_size, task.tagging)
        results.append(
            ModelResult(
                name=name,
                sha256=weights_sha256(model.base_model),  # type: ignore[arg-type]
                parameters=sum(tensor.numel() for tensor in model.parameters()),
                size_mib=sum(tensor.nbytes for tensor in model.parameters()) / 2**20,
                max_length=length,
                truncated=reported.truncated,
                unseen=reported.unseen,
                how=FineTuning(settings.epochs, settings.batch_size, rate),
                latency_ms=0.0,
                runs=(),
            )
        )
    _require_different(results)
    latencies = latency_ms([model for model, _ in loaded], inputs)
    return [replace(result, latency_ms=latency) for result, latency in zip(results, latencies, strict=True)]


def _max_length(
    settings: EvaluationSettings, task: Task, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return the longest input in tokens. Raises CometError if the one asked for holds no word, or is too long."""
    special, most = tokenizer.num_special_tokens_to_add(), max_positions(model.config)
    if settings.max_length is not None and not special < settings.max_length <= most:
        raise CometError(
            f"--max-length {settings.max_length}: expected {special + 1} to {most} for {name}, which adds {special} "
            f"special tokens and reads at most {most}",
            exit_code=2,
        )
    return settings.max_length or min(task.max_length, most)


def _require_different(models: Sequence[ModelResult]) -> None:
    """Raise CometError if two models have the same weights: a comparison of one with itself says nothing."""
    first: dict[str, str] = {}
    for model in models:
        if (other := first.setdefault(model.sha256, model.name)) != model.name:
            raise CometError(f"--model {model.name}: has the same weights as {other}; give one of them", exit_code=2)


@torch.no_grad()
def latency_ms(models: Sequence[PreTrainedModel], inputs: Sequence[Sequence[Any]]) -> list[float]:
    """Return each model's median milliseconds for a forward pass on one text of its `inputs`, on one CPU thread.

    The models take turns at every text, so that other load on the machine affects all of them alike.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with _one_thread():
        for turn in range(LATENCY_ROUNDS + 1):
            for texts in zip(*inputs, strict=True):
                for model, text, taken in zip(models, texts, seconds, strict=True):
                    start = time.perf_counter()
                    model.eval()(**text)
                    if turn:  # the first round warms up
                        taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in seconds]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_once(name: str, result: ModelResult, data: TaskData, seed: int, device: torch.device) -> tuple[Run, FineTuned]:
    """Fine-tune and score a model with a seed. `name` is a folder, or a name on the hub with its commit."""
    start = time.perf_counter()
    task = data.task
    model, tokenizer = load_for_task(name, task, seed)
    tokenizer.model_max_length = result.max_length  # of positions beyond it learns nothing
    train = encode(tokenizer, data.train.examples, task, result.max_length)
    reported = encode(tokenizer, data.reported.examples, task, result.max_length)
    fine_tune(model, train, task, result.how, seed, device, result.name)
    predictions = predict(model, reported, task, PREDICT_BATCH, device)
    chosen_score = None
    if data.chosen_on is not None:
        dev = encode(tokenizer, data.chosen_on.examples, task, result.max_length)
        chosen_score = task.score(dev.labels, predict(model, dev, task, PREDICT_BATCH, device))
    score = task.score(reported.labels, predictions)
    return Run(seed, score, chosen_score, time.perf_counter() - start, predictions), (model, tokenizer)


def _save_best(
    output: Path, data: TaskData, models: Sequence[ModelResult], pinned: dict[str, str], device: torch.device
) -> str:
    """Fine-tune the best candidate again with its seed, and write it as an ordinary transformers folder.

    Returns a line about it. Raises CometError if the folder was created meanwhile or cannot be written.
    """
    result, chosen = best_candidate(models)
    run, (model, tokenizer) = _run_once(pinned[result.name], result, data, chosen.seed, device)
    way_out = "all scores are in the results; make room, then run the same command again"
    with writing(output, way_out), published_folder(output) as folder:
        model.cpu().save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        (folder / "README.md").write_text(finetuned_card(data, result, run), encoding="utf-8")
    return f"{result.name}, seed {run.seed} ({data.task.metric} {100 * run.score:.1f}) is in {output}"
