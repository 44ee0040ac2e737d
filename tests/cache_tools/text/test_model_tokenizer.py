"""Models' tokenizers read text as their tokenizer.json says, whatever transformers makes of the class's name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_teachers import NAMES, bert, roberta
from tokenizers import BertWordPieceTokenizer, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from cache_tools.errors import CometError
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.text.tokenizer import encode_texts


@pytest.fixture
def lines(sample_text: Path) -> list[str]:
    return sample_text.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def folder(sample_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_teacher, tmp_path / "teacher"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def raw_ids(folder: Path, lines: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]


def teacher_ids(folder: Path, lines: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in encode_texts(load_teacher_tokenizer(str(folder)), lines)]


def test_a_normaliser_that_the_class_would_drop(
    folder: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers 4 saved XLM-R's tokenizers: with the name of a class that 5 builds without a normaliser."""
    change(folder / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer")
    odd = [f"{line} ﬁ ①" for line in lines[:20]]  # which the normaliser spells out
    by_class = AutoTokenizer.from_pretrained(folder)
    assert [by_class(line, add_special_tokens=False).input_ids for line in odd] != raw_ids(folder, odd)
    assert teacher_ids(folder, odd) == raw_ids(folder, odd)
    load_teacher_tokenizer(str(folder), iter(odd))
    said = capsys.readouterr().out
    assert "20 of the first 20 lines are read as its tokenizer.json says, but differently by transformers'" in said
    assert "set tokenizer_class to PreTrainedTokenizerFast" in said


def test_a_model_that_the_class_would_replace(tmp_path: Path, sample_text: Path, lines: list[str]) -> None:
    """A RoBERTa with WordPiece: its class would take the pieces for byte pairs, and spell every word in letters."""
    pieces = BertWordPieceTokenizer(
        lowercase=False, unk_token="<unk>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )
    pieces.train([str(sample_text)], vocab_size=500, special_tokens=list(NAMES.values()), show_progress=False)
    pieces.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "RobertaTokenizer", "cls_token": "<s>", "sep_token": "</s>", **NAMES}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    found = teacher_ids(tmp_path, lines)
    assert found == raw_ids(tmp_path, lines)
    assert sum(map(len, found)) < 0.8 * sum(map(len, lines)), "pieces, not letters"


def test_a_pre_tokeniser_that_was_changed(tmp_path: Path, sample_text: Path, lines: list[str]) -> None:
    roberta(tmp_path, sample_text)
    change(tmp_path / "tokenizer_config.json", tokenizer_class="RobertaTokenizer")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    by_digit = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_digit)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with_numbers = [f"{line} 1994 2026" for line in lines[:50]]
    assert teacher_ids(tmp_path, with_numbers) == raw_ids(tmp_path, with_numbers)


def test_nothing_is_said_of_one_that_transformers_reads_alike(
    tmp_path: Path, sample_text: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bert(tmp_path, sample_text)
    assert teacher_ids(tmp_path, lines) == raw_ids(tmp_path, lines)
    load_teacher_tokenizer(str(tmp_path), iter(lines))
    assert capsys.readouterr().out == ""


def test_a_special_token_that_only_the_class_knows_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer", mask_token="<blank>")
    with pytest.raises(CometError, match=r"its tokenizer.json gives <blank> the id None, XLMRobertaTokenizer of tra"):
        load_teacher_tokenizer(str(folder))


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta", "bert"])
def test_a_folder_without_a_tokenizer(tmp_path: Path, kind: str) -> None:
    """A checkpoint of a Trainer that was not given one: transformers makes a tokenizer of five pieces."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(
        CometError, match=rf"teacher {tmp_path} has no tokenizer: expected tokenizer.json or "
    ) as caught:
        load_teacher_tokenizer(str(tmp_path))
    assert str(caught.value).endswith("found none; copy the files of the model that it was trained from")


def test_a_folder_with_a_part_of_a_tokenizer(tmp_path: Path, sample_text: Path) -> None:
    """Byte pairs without their merges would spell every word in bytes."""
    roberta(tmp_path, sample_text)
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(state["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "tokenizer.json").unlink()
    change(tmp_path / "tokenizer_config.json", tokenizer_class="RobertaTokenizer")
    expected = r"expected tokenizer.json or vocab.json and merges.txt, found vocab.json; copy|cannot be loaded"
    with pytest.raises(CometError, match=expected):
        load_teacher_tokenizer(str(tmp_path))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in state["model"]["merges"]))
    assert load_teacher_tokenizer(str(tmp_path)).convert_tokens_to_ids("<mask>") == 4
