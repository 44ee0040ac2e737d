"""Students of teachers of other families than XLM-R: trained, loaded by plain transformers, evaluated, exported."""

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.small_tasks import write_topics
from helpers.trainings import start_training, wait_for_checkpoint
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cache_tools import Cache
from comet import StudentConfig, distill
from comet.evaluate.evaluation import evaluate
from comet.evaluate.settings import EvaluationSettings
from comet.export.export import export
from comet.export.settings import ExportSettings
from comet.settings import Distilled
from comet.train.dataset import shards_of
from comet.train.distiller import Distiller
from comet.train.objective import DEFAULT
from comet.train.validation import validate, validation_rows

TRAINED = {
    "bert": ("BertForMaskedLM", "full"),
    "trimmed bert": ("BertForMaskedLM", "trimmed"),
    "roberta": ("XLMRobertaForMaskedLM", "full"),
    "trimmed roberta": ("XLMRobertaForMaskedLM", "trimmed"),
    "modernbert": ("ModernBertForMaskedLM", "full"),
    "trimmed mmbert": ("ModernBertForMaskedLM", "trimmed"),
    "electra": ("XLMRobertaForMaskedLM", "full"),
    "trimmed modernbert": ("ModernBertForMaskedLM", "trimmed"),
}


@pytest.fixture(scope="module")
def student_of(
    cache_of: Callable[[str], Cache], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Cache, Distilled]]:
    """The cache and the student of one of TRAINED, each trained once."""

    @functools.cache
    def train(name: str) -> tuple[Cache, Distilled]:
        cache, output = cache_of(name.removeprefix("trimmed ")), tmp_path_factory.mktemp("trained") / "student"
        return cache, distill([cache], StudentConfig(output, student="nano", vocabulary=TRAINED[name][1], steps=20))

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_student_comes_nearer_and_cuts_as_its_teacher(
    name: str, student_of: Callable[[str], tuple[Cache, Distilled]], sample_text: Path
) -> None:
    cache, result = student_of(name)
    assert result.after.kl < result.before.kl
    theirs, ours = (AutoTokenizer.from_pretrained(f) for f in (cache.root.parent / "teacher", result.output))
    text = sample_text.read_text(encoding="utf-8").splitlines()[0]
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.convert_ids_to_tokens(ours(text)["input_ids"]) == theirs.convert_ids_to_tokens(
        theirs(text)["input_ids"]
    )


@pytest.mark.parametrize("name", TRAINED)
def test_plain_transformers_loads_the_student_that_was_trained(
    name: str, student_of: Callable[[str], tuple[Cache, Distilled]], sample_text: Path
) -> None:
    cache, result = student_of(name)
    model, loading = AutoModelForMaskedLM.from_pretrained(result.output, output_loading_info=True)
    assert type(model).__name__ == TRAINED[name][0]
    assert not any(loading.values()), loading
    assert model.config._attn_implementation == "sdpa"
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    encoded = tokenizer(sample_text.read_text(encoding="utf-8").splitlines()[0], return_tensors="pt")
    assert ("token_type_ids" in encoded) == (TRAINED[name][0] == "BertForMaskedLM")
    with torch.no_grad():
        logits = model(**encoded).logits
    assert logits.shape[-1] == len(tokenizer) == len(result.vocabulary) and logits.isfinite().all()
    if result.vocabulary.trimmed:
        return  # the rows below are in the teacher's ids
    rows = validation_rows(shards_of([cache], "validation"))
    again = validate(Distiller(model, cache.recipe, DEFAULT), rows, 32, torch.device("cpu"))
    assert again.kl == pytest.approx(result.after.kl, rel=1e-5)
    assert again.cross_entropy == pytest.approx(result.after.cross_entropy, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_training_that_was_stopped_gives_the_same_student(
    name: str, cache_of: Callable[[str], Cache], tmp_path: Path
) -> None:
    cache, output, options = cache_of(name), tmp_path / "student", ("--steps", "30", "--batch-size", "4")
    running = start_training(cache, output, *options)
    wait_for_checkpoint(running, output, 3)
    assert running.send(signal.SIGTERM).code == 1
    ended = start_training(cache, output, *options, "--resume").wait()
    assert ended.code == 0 and "resuming after step" in ended.stdout, ended.stderr
    whole = StudentConfig(tmp_path / "whole", student="nano", steps=30, batch_size=4, dtype="float32")
    distill([cache], whole)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (output, whole.output))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trimmed bert", "trimmed modernbert", "trimmed mmbert"])
def test_a_student_is_evaluated_and_exported(
    name: str, student_of: Callable[[str], tuple[Cache, Distilled]], tmp_path: Path
) -> None:
    student = str(student_of(name)[1].output)
    topics = write_topics(tmp_path / "data" / "kin").parent
    settings = EvaluationSettings(
        models=(student,),
        task="sib200",
        language="rw",
        data=topics,
        results=tmp_path / "results.json",
        seeds=1,
        epochs=1,
        batch_size=4,
    )
    (model,) = evaluate(settings, lambda _: None).models
    assert 0 <= model.runs[0].score <= 1
    said: list[str] = []
    folder = export(ExportSettings(Path(student), output=tmp_path / "onnx"), said.append)
    assert (folder / "model.onnx").is_file() and "largest difference of a logit to torch" in said[-1]
