"""Teachers in the forms that people have them: pickled weights, several files, only sentencepiece; other families."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from helpers.attention import differing_draws
from helpers.builds import assert_one_error_line, build, build_whole, digests
from helpers.tiny_teachers import OTHER_HEADS, TINY, bert, mmbert, modernbert, of_kind, roberta
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModelForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

from cache_tools import open_cache

OPTIONS: dict[str, Any] = {
    "max_tokens": 500,
    "seq_len": 40,
    "rows_per_shard": 8,
    "keep": "topk",
    "top_k": 5,
    "attention_queries": 3,
    "attention_keys": 10,
    "attention_layers": "all",
}
KINDS = "electra", "distilbert", "albert", "gte", "eurobert"
BOS, PAD, EOS, UNKNOWN, MASK = 0, 1, 2, 3, 401  # where XLM-R has them around 400 pieces of sentencepiece


@pytest.fixture(scope="module")
def of_sample(tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, sample_text: Path) -> dict[str, str]:
    """The digests of a cache from the sample teacher as it is."""
    folder = tmp_path_factory.mktemp("sample")
    build_whole(folder / "kin.zarr", sample_teacher, sample_text, folder / "log", **OPTIONS)
    return digests(folder / "kin.zarr")


def assert_is_what_the_teacher_says(out: Path, teacher: Path) -> None:
    """The best logits and the attention of all rows against the plain model with eager attention, row by row."""
    model = AutoModelForMaskedLM.from_pretrained(teacher, attn_implementation="eager", dtype=torch.float32).eval()
    root: Any = zarr.open_group(out, mode="r")
    recipe, differ, kept = open_cache(out).recipe, 0, 0
    for group in ("train", "validation"):
        arrays = {name: array[...] for name, array in root[group].arrays()}
        for row, n in enumerate(arrays["length"]):
            ids = torch.from_numpy(arrays["input_ids"][row, :n].astype(np.int64))[None]
            with torch.no_grad():
                output = model(ids, output_attentions=bool(recipe.attention_layers))
            used = arrays["target_position"][row] != 65535
            at = torch.from_numpy(arrays["target_position"][row][used].astype(np.int64))
            logprob = output.logits[0, at].double().log_softmax(1).numpy()
            stored = arrays["topk_logprob"][row][used]
            np.testing.assert_allclose(stored, -np.sort(-logprob, axis=1)[:, : stored.shape[1]], rtol=1e-3, atol=1e-3)
            chosen = np.take_along_axis(logprob, arrays["topk_id"][row][used].astype(np.int64), axis=1)
            np.testing.assert_allclose(stored, chosen, rtol=1e-3, atol=1e-3)
            if not recipe.attention_layers:
                continue
            attention = torch.cat(output.attentions).double().mean(1).numpy()  # [layers, n, n]
            differ += differing_draws(attention, arrays, row, recipe)
            kept += int((arrays["attention_gap"][row] < recipe.seq_len).sum())
    assert differ <= 0.01 * kept, "rounding may move a draw to its neighbour, but rarely"


def original_rows(out: Path) -> list[list[int]]:
    """The train rows before masking, without padding."""
    train: Any = zarr.open_group(out, mode="r")["train"]
    ids, position, true = (train[name][...] for name in ("input_ids", "target_position", "target_id"))
    row, slot = np.nonzero(position != 65535)
    ids[row, position[row, slot]] = true[row, slot]
    return [[int(i) for i in r[:n]] for r, n in zip(ids, train["length"][...], strict=True)]


def original_ids(out: Path, special: list[int]) -> list[int]:
    return [i for row in original_rows(out) for i in row if i not in special]


def test_pickled_weights_give_the_same_cache_as_safetensors(
    tmp_path: Path, of_sample: dict[str, str], sample_teacher: Path, sample_text: Path
) -> None:
    teacher = shutil.copytree(sample_teacher, tmp_path / sample_teacher.name)
    torch.save(load_file(teacher / "model.safetensors"), teacher / "pytorch_model.bin")
    (teacher / "model.safetensors").unlink()
    build_whole(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert digests(tmp_path / "kin.zarr") == of_sample


def test_damaged_pickled_weights_are_refused_in_one_line(
    tmp_path: Path, sample_teacher: Path, sample_text: Path
) -> None:
    teacher = shutil.copytree(sample_teacher, tmp_path / "teacher")
    (teacher / "model.safetensors").unlink()
    (teacher / "pytorch_model.bin").write_bytes(b"no weights at all")
    ended = build(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert_one_error_line(ended, 1, f"teacher {teacher}", "cannot be loaded")


def test_weights_in_several_files_give_the_same_cache(
    tmp_path: Path, of_sample: dict[str, str], sample_teacher: Path, sample_text: Path
) -> None:
    teacher = shutil.copytree(sample_teacher, tmp_path / sample_teacher.name)
    tensors = load_file(teacher / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in files.items():
        save_file({name: tensors[name] for name in chosen}, teacher / file, metadata={"format": "pt"})
    places = {name: file for file, chosen in files.items() for name in chosen}
    (teacher / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (teacher / "model.safetensors").unlink()
    build_whole(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert digests(tmp_path / "kin.zarr") == of_sample


@pytest.fixture(scope="module")
def sentencepiece_teacher(tmp_path_factory: pytest.TempPathFactory, sample_text: Path) -> tuple[Path, Any]:
    """A random XLM-R whose tokenizer is only a sentencepiece.bpe.model of 400 pieces, and that model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG types, at the first import
        import sentencepiece
    teacher = tmp_path_factory.mktemp("teacher")
    sentencepiece.SentencePieceTrainer.train(
        input=str(sample_text), model_prefix=str(teacher / "sentencepiece.bpe"), vocab_size=400, minloglevel=2
    )
    (teacher / "sentencepiece.bpe.vocab").unlink()
    (teacher / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    torch.manual_seed(0)
    XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=MASK + 1, **TINY)).save_pretrained(teacher)
    return teacher, sentencepiece.SentencePieceProcessor(model_file=str(teacher / "sentencepiece.bpe.model"))


def test_a_tokenizer_that_is_only_a_sentencepiece_model(
    tmp_path: Path, sample_text: Path, sentencepiece_teacher: tuple[Path, Any]
) -> None:
    teacher, pieces = sentencepiece_teacher
    out = tmp_path / "kin.zarr"
    build_whole(out, teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert_is_what_the_teacher_says(out, teacher)
    lines = sample_text.read_text().splitlines()
    found = original_ids(out, [BOS, PAD, EOS, UNKNOWN, MASK])
    assert set(found) <= {i + 1 for line in lines for i in pieces.encode(line)}
    text = pieces.decode([i - 1 for i in found])
    assert sum(line.strip() in text for line in lines[:20]) > 10
    assert {path.name for path in (out / "tokenizer").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_a_text_cannot_write_special_tokens(
    tmp_path: Path, sample_text: Path, sentencepiece_teacher: tuple[Path, Any]
) -> None:
    lines = sample_text.read_text().splitlines()[:40]
    (tmp_path / "text.txt").write_text("\n".join(f"{line} <mask> <s> <pad> </s> {line}" for line in lines))
    out = tmp_path / "kin.zarr"
    build_whole(out, sentencepiece_teacher[0], tmp_path / "text.txt", tmp_path / "log", **OPTIONS)
    found = [i for row in original_rows(out) for i in row[1:-1]]
    assert {BOS, PAD, MASK}.isdisjoint(found)
    assert found.count(EOS) < len(lines)


def test_a_bert_with_wordpiece(tmp_path: Path, sample_text: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    bert(teacher, sample_text)
    pieces = BertWordPieceTokenizer(str(teacher / "vocab.txt"), lowercase=False)

    out = tmp_path / "kin.zarr"
    build_whole(out, teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert_is_what_the_teacher_says(out, teacher)
    special = [pieces.token_to_id(f"[{name}]") for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    found = " ".join(pieces.id_to_token(i) for i in original_ids(out, special)).replace(" ##", "")
    lines = [pieces.encode(line, add_special_tokens=False) for line in sample_text.read_text().splitlines()[:20]]
    assert sum(" ".join(line.tokens).replace(" ##", "") in found for line in lines) > 10

    too_long = build(tmp_path / "other.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS | {"seq_len": 65})
    assert_one_error_line(too_long, 2, "--seq-len 65", "at most 64")
    build_whole(tmp_path / "other.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS | {"seq_len": 64})


@pytest.mark.parametrize("family", [roberta, modernbert, mmbert, *(OTHER_HEADS[name] for name in KINDS)])
def test_other_families(tmp_path: Path, sample_text: Path, family: Callable[[Path, Path], None]) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    family(teacher, sample_text)
    build_whole(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert_is_what_the_teacher_says(tmp_path / "kin.zarr", teacher)


def test_a_model_without_the_attention_interface_gives_its_logits(tmp_path: Path, sample_text: Path) -> None:
    """RemBERT computes attention in its own way, and its head has no transform of its own."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    OTHER_HEADS["rembert"](teacher, sample_text)
    refused = build(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS)
    assert_one_error_line(refused, 2, "could not be captured", "build without attention: --attention-layers none")
    build_whole(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **OPTIONS | {"attention_layers": "none"})
    assert_is_what_the_teacher_says(tmp_path / "kin.zarr", teacher)


def test_a_model_that_reads_its_padding_is_refused(tmp_path: Path, sample_text: Path) -> None:
    """ConvBERT's convolutions reach into the padding behind a row."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    of_kind("ConvBertForMaskedLM", embedding_size=32, head_ratio=2, conv_kernel_size=3)(teacher, sample_text)
    options = OPTIONS | {"attention_layers": "none"}
    refused = build(tmp_path / "kin.zarr", teacher, sample_text, tmp_path / "log", **options)
    assert_one_error_line(refused, 2, "ConvBertForMaskedLM reads a row differently beside another, or with padding")
