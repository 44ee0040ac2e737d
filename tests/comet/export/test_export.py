"""Exported models say what torch says, and nothing is exported that does not."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.students import NANO
from huggingface_hub.repocard import metadata_load
from onnx import numpy_helper
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

import comet
from cache_tools import Cache
from cache_tools.errors import CometError
from comet.cli.export import export_model
from comet.evaluate.datasets import Example
from comet.evaluate.finetuning import encode
from comet.evaluate.tasks import find_task
from comet.export import export as exporting
from comet.export import onnx_model
from comet.export.card import card
from comet.export.check import Comparison
from comet.export.export import export
from comet.export.onnx_model import open_session, run
from comet.export.settings import ExportSettings
from comet.student.model import new_student
from comet.student.vocabulary import StudentVocabulary, full_vocabulary, student_tokenizer, trimmed_vocabulary

KINDS = {"texts": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}
LABELS = {0: "negative", 1: "neutral", 2: "positive"}


def save(cache: Cache, vocabulary: StudentVocabulary, folder: Path) -> Path:
    """A student as `comet-train` leaves it, before its first step."""
    torch.manual_seed(0)
    new_student(NANO, [cache], vocabulary, 0.0, seed=0).eval().save_pretrained(folder)
    tokenizer = student_tokenizer(cache, vocabulary)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(cache, full_vocabulary(cache.recipe), tmp_path_factory.mktemp("full") / "kin-student")


@pytest.fixture(scope="module")
def classifiers(cache: Cache, student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student with a classifier's head on it, of texts and of tokens."""
    return {name: classifier(name, cache, student, tmp_path_factory.mktemp(name) / "classifier") for name in KINDS}


def classifier(name: str, cache: Cache, student: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    model = KINDS[name].from_pretrained(student, id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    for part in model.classifier.parameters():  # as far apart as a trained one's answers
        torch.nn.init.normal_(part, std=0.3)
    model.save_pretrained(folder)
    student_tokenizer(cache, full_vocabulary(cache.recipe)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The student's folder, as the command made it, and what the command said."""
    output = tmp_path_factory.mktemp("exported") / "exported"
    return output, command(str(student), "--output", str(output))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(export_model, arguments)


def snippet_of(folder: Path) -> str:
    (script,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(script)


def said_by(folder: Path) -> list[str]:
    """What the script of README.md prints, as it stands, where neither torch nor transformers can be imported."""
    forbidden = "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
    command = [sys.executable, "-c", forbidden + snippet_of(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_command_says_what_it_made(exported: tuple[Path, Result]) -> None:
    output, result = exported
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert re.search(r"exporting \S+kin-student, XLMRobertaForMaskedLM with [\d,]+ parameters", result.output)
    assert re.search(
        r"exported: [\d.]+ MiB; largest difference of a logit to torch \S+ \(allowed 0.0001\)", result.output
    )
    assert re.search(
        r"at [\d,]+ positions of the sample's Kinyarwanda text, since no text of its own is at hand\n", result.output
    )
    assert "positions of the sample's Kinyarwanda text" in (output / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in output.iterdir()} == {
        "model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "README.md",
    }  # fmt: skip
    assert [path.name for path in output.parent.iterdir()] == ["exported"]
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1


def test_a_masked_lm_fills_in_what_torch_fills_in(student: Path, exported: tuple[Path, Result]) -> None:
    _, tokenizer = exporting.load(student)
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    text = "Umwana yagiye ku <mask>."
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits[0, ids["input_ids"][0] == tokenizer.mask_token_id]
    best = tokenizer.convert_ids_to_tokens(logits[0].topk(5).indices.tolist())
    assert said_by(exported[0])[0] == f"{text} {best}"


@pytest.mark.parametrize("int8", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_classifier_of_texts_says_its_labels(classifiers: dict[str, Path], tmp_path: Path, int8: bool) -> None:
    folder = export(ExportSettings(classifiers["texts"], int8, tmp_path / "exported"), say=lambda _: None)
    lines = said_by(folder)
    assert len(lines) == 2 and all(line.split()[-1] in LABELS.values() for line in lines)
    if not int8:
        model, tokenizer = exporting.load(classifiers["texts"])
        text = "Umwana yagiye ku ishuri."
        with torch.no_grad():
            best = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
        assert lines[0] == f"{text} {LABELS[best]}"


@pytest.mark.parametrize(
    ("metadata", "languages", "comment"),
    [
        ("language: [swa, hau]", ["swa", "hau"], "  # Kinyarwanda: put text in the model's own language here"),
        ("language: rw", ["rw"], ""),
        ("[", None, "  # Kinyarwanda: put text in the model's own language here"),
    ],
)
def test_examples_in_another_language_are_said_to_be(
    classifiers: dict[str, Path], tmp_path: Path, metadata: str, languages: list[str] | None, comment: str
) -> None:
    folder = Path(shutil.copytree(classifiers["texts"], tmp_path / "classifier"))
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n", encoding="utf-8")
    model, tokenizer = exporting.load(folder)
    text = card(model, tokenizer, "exported", False, 1, Comparison(1, 0.0, 1.0, 0.0), "Swahili text of its cache")
    assert f'texts = ["Umwana yagiye ku ishuri.", "Muraho neza"]{comment}\n' in text
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert metadata_load(tmp_path / "README.md").get("language") == languages
    assert "at 1 positions of Swahili text" in text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlm-r", "modernbert", "bert"])
def test_a_classifier_of_tokens_says_the_labels_that_it_is_scored_by(
    cache: Cache, cache_of: Callable[[str], Cache], tmp_path: Path, family: str
) -> None:
    """One a word; byte-level tokens of words apart would be other tokens."""
    found = cache if family == "xlm-r" else cache_of(family)
    tagger = classifier(
        "tokens", found, save(found, full_vocabulary(found.recipe), tmp_path / "lm"), tmp_path / "tagger"
    )
    first, second = said_by(export(ExportSettings(tagger, output=tmp_path / "exported"), say=lambda _: None))
    model, tokenizer = exporting.load(tagger)
    for said, sentence in ((first, "Mukamana yagiye i Kigali"), (second, "Muraho neza")):
        words = tuple(sentence.split())
        encoded = encode(tokenizer, [Example(words, ("O",) * len(words))], find_task("masakhaner"), 64)
        with torch.no_grad():
            logits = model(torch.tensor([encoded.inputs[0]["input_ids"]])).logits[0]
        expected = [LABELS[int(logits[position].argmax())] for position in encoded.positions[0]]
        assert ast.literal_eval(said) == list(zip(words, expected, strict=True))


@pytest.mark.slow
def test_a_trimmed_student_keeps_its_own_tokenizer(threshold_cache: Cache, student: Path, tmp_path: Path) -> None:
    vocabulary = trimmed_vocabulary([threshold_cache])
    trimmed = save(threshold_cache, vocabulary, tmp_path / "trimmed")
    folder = export(ExportSettings(trimmed, output=tmp_path / "exported"), say=lambda _: None)
    logits = run(open_session(folder / "model.onnx"), np.array([[0, 5, 2]]), np.ones((1, 3), np.int64))
    assert logits.shape == (1, 3, len(vocabulary))
    assert "Muraho" in said_by(folder)[1]


def test_padding_and_the_rest_of_the_batch_change_nothing(exported: tuple[Path, Result]) -> None:
    session = open_session(exported[0] / "model.onnx")
    ids = np.array([[0, 30, 40, 50, 2], [0, 60, 2, 1, 1], [0, 2, 1, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    together = run(session, ids, mask)
    for row, length in enumerate(mask.sum(1)):
        alone = run(session, ids[row : row + 1, :length], np.ones((1, length), np.int64))
        np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-5)


@pytest.mark.slow
def test_int8_is_smaller_and_says_how_near_it_is(student: Path, exported: tuple[Path, Result], tmp_path: Path) -> None:
    said: list[str] = []
    folder = export(ExportSettings(student, int8=True, output=tmp_path / "int8"), said.append)
    share = (folder / "model.onnx").stat().st_size / (exported[0] / "model.onnx").stat().st_size
    assert share < 0.6  # the head of a masked LM is in it beside the embeddings
    assert re.search(r"best answer at \d+\.\d% of the positions \(at least 90%\)", said[-1])
    matrices = [one for one in onnx.load(folder / "model.onnx").graph.initializer if len(one.dims) > 1]
    assert not [one.name for one in matrices if one.data_type == onnx.TensorProto.FLOAT]


def test_no_file_names_a_folder_of_the_machine(student: Path, exported: tuple[Path, Result]) -> None:
    inside = str(Path(comet.__file__).parent).encode(), str(student.parent).encode()
    for path in exported[0].iterdir():
        assert not any(name in path.read_bytes() for name in inside), path.name


def test_an_existing_folder_stays_as_it_is(student: Path, tmp_path: Path) -> None:
    kept = tmp_path / "exported" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    result = command(str(student), "--output", str(kept.parent))
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith("exported: exists; give another --output, or remove it")
    assert kept.read_text() == "mine" and len(list(kept.parent.iterdir())) == 1


@pytest.mark.slow
def test_one_that_came_to_exist_meanwhile_stays_too(student: Path, tmp_path: Path) -> None:
    settings = ExportSettings(student, output=tmp_path / "exported")
    settings.folder.mkdir()
    (settings.folder / "mine.txt").write_text("mine")
    with pytest.raises(CometError, match="exported: was created meanwhile"):
        export(settings, say=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert [path.name for path in settings.folder.iterdir()] == ["mine.txt"]


def test_without_the_extra_one_line_says_what_to_install(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "onnxruntime" else real(name, package)

    monkeypatch.setattr(exporting.importlib.util, "find_spec", find)
    result = command(str(student), "--output", str(tmp_path / "exported"))
    assert result.exit_code == 1
    assert "comet-export needs onnxruntime: in the checkout, pip install '.[onnx]'" in result.output


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"cannot be loaded; expected config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), r"cannot be loaded; expected config.json"),
        (lambda folder: rewrite(folder, architectures=["XLMRobertaModel"]), "architecture XLMRobertaModel; expected"),
        (lambda folder: rewrite(folder, num_hidden_layers=9), r"its weights lack .*, which would be random numbers"),
    ],
)
def test_what_is_no_such_model_is_refused(student: Path, tmp_path: Path, break_it: Any, message: str) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in student.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    break_it(folder)
    with pytest.raises(CometError, match=message):
        export(ExportSettings(folder, output=tmp_path / "exported"), say=lambda _: None)
    assert not (tmp_path / "exported").exists()


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.slow
def test_a_model_that_says_something_else_is_not_exported(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is made to write one layer's weights slightly wrong."""
    real = onnx_model.write_onnx

    def wrong(model: Any, path: Path) -> None:
        real(model, path)
        proto = onnx.load(path)
        weights = next(one for one in proto.graph.initializer if len(one.dims) == 2 and min(one.dims) > 8)
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.05, weights.name))
        onnx.save(proto, path)

    monkeypatch.setattr(onnx_model, "write_onnx", wrong)
    with pytest.raises(CometError, match=r"the exported logits differ from torch's by .*, expected at most 0.0001"):
        export(ExportSettings(student, output=tmp_path / "exported"), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []
