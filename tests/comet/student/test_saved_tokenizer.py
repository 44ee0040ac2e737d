"""A saved student's tokenizer reads as the teacher's: in pieces of bytes, behind any post-processor, in other hands."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.settings import build_settings
from helpers.tiny_teachers import bert
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from cache_tools import Cache, build_cache
from cache_tools.errors import CometError
from cache_tools.text.tokenizer import load_tokenizer
from comet import StudentConfig, distill
from comet.student.saved_tokenizer import FOREIGN, corpus_lines, require_same_reading, save_student_tokenizer
from comet.student.vocabulary import StudentVocabulary, full_vocabulary, student_tokenizer, trimmed_vocabulary

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def with_bytes(folder: Path, text: Path) -> None:
    """An XLM-R whose Unigram model spells unknown characters in bytes, as Gemma's and mT5's do."""
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    pieces.train([str(text)], trainer)
    state = json.loads(pieces.to_str())
    vocab = state["model"]["vocab"]
    least = min(score for _, score in vocab) - 1
    state["model"]["vocab"] = [*vocab[:4], *([f"<0x{i:02X}>", least] for i in range(256)), *vocab[4:]]
    state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>", **roles
    ).save_pretrained(folder)
    size = tokenizer.get_vocab_size()
    XLMRobertaForMaskedLM(
        XLMRobertaConfig(vocab_size=size, bos_token_id=0, pad_token_id=1, eos_token_id=2, **TINY)
    ).save_pretrained(folder)


def in_a_sequence(folder: Path, text: Path) -> None:
    """A BERT whose special tokens lie behind other pieces, and whose post-processor is one of a sequence."""
    bert(folder, text)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    moved = {piece: i for i, piece in enumerate([pieces[0], *pieces[-100:], *pieces[1:-100]])}
    state["model"]["vocab"] = moved
    for token in state["added_tokens"]:
        token["id"] = moved[token["content"]]
    names = ("[CLS]", "[SEP]")
    single, special = "[CLS] $A [SEP]", [(name, moved[name]) for name in names]
    template = processors.TemplateProcessing(single=single, pair=f"{single} $B [SEP]", special_tokens=special)
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.Sequence([template])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config |= {"mask_token": "[MASK]", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert len(pieces) == BertForMaskedLM.from_pretrained(folder).config.vocab_size


@pytest.fixture(scope="module")
def cache_with(sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Cache]:
    def build(make: Callable[[Path, Path], None]) -> Cache:
        folder = tmp_path_factory.mktemp("cache")
        (folder / "teacher").mkdir()
        make(folder / "teacher", sample_text)
        options = {"max_tokens": 4000, "attention_layers": "none"}
        return build_cache(build_settings(folder / "kin.zarr", folder / "teacher", sample_text, **options))

    return build


def save(cache: Cache, vocabulary: StudentVocabulary, folder: Path) -> Any:
    tokenizer = student_tokenizer(cache, vocabulary)
    save_student_tokenizer(tokenizer, ["input_ids", "attention_mask"], folder, [cache], vocabulary)
    return AutoTokenizer.from_pretrained(folder)


def test_text_outside_the_corpus_is_spelled_in_bytes(cache_with: Callable[..., Cache], tmp_path: Path) -> None:
    cache = cache_with(with_bytes)
    vocabulary = trimmed_vocabulary([cache])
    assert len(vocabulary) < cache.recipe.vocab_size
    student, teacher = save(cache, vocabulary, tmp_path), load_tokenizer(cache.tokenizer_folder)
    for line in FOREIGN:
        assert teacher.unk_token_id not in teacher(line).input_ids, "else that tells nothing"
        assert student.unk_token_id not in student(line).input_ids, line


def test_special_tokens_of_a_post_processor_in_a_sequence(cache_with: Callable[..., Cache], tmp_path: Path) -> None:
    cache = cache_with(in_a_sequence)
    student = save(cache, trimmed_vocabulary([cache]), tmp_path)
    tokens = student.convert_ids_to_tokens(student("Mwaramutse").input_ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and "[CLS]" not in tokens[1:-1]


def test_what_the_student_was_trained_on_is_what_it_reads(cache: Cache, tmp_path: Path) -> None:
    result = distill([cache], StudentConfig(tmp_path / "student", student="nano", steps=1))
    student, teacher = AutoTokenizer.from_pretrained(result.output), load_tokenizer(cache.tokenizer_folder)
    lines = corpus_lines(cache, teacher)
    assert len(lines) > 5
    ids = trimmed_vocabulary([cache]).student_id
    wanted = [ids[teacher(line, return_tensors="pt").input_ids[0]].tolist() for line in lines]
    whole = [line for line in range(len(lines)) if min(wanted[line]) >= 0]  # not those that end in part of a word
    assert len(whole) > 0.9 * len(lines)
    assert all(student(lines[line]).input_ids == wanted[line] for line in whole)


def test_letters_and_marks_apart_are_read_as_together(cache: Cache, tmp_path: Path) -> None:
    student = save(cache, full_vocabulary(cache.recipe), tmp_path)
    line = "Ẹ̀kọ́ Yorùbá ṣe pàtàkì"
    assert student(unicodedata.normalize("NFD", line)).input_ids == student(line).input_ids


@pytest.mark.parametrize("trimmed", [True, False])
def test_it_cuts_where_the_rows_of_the_cache_end(trimmed: bool, cache: Cache, tmp_path: Path) -> None:
    """What lies beyond was never trained, whatever length the teacher's tokenizer promises."""
    assert load_tokenizer(cache.tokenizer_folder).model_max_length > cache.recipe.seq_len
    student = save(cache, trimmed_vocabulary([cache]) if trimmed else full_vocabulary(cache.recipe), tmp_path)
    ids = student("Muraho neza. " * 100, truncation=True).input_ids
    assert len(ids) == student.model_max_length == cache.recipe.seq_len
    assert ids[-1] == student.sep_token_id


def test_transformers_4_knows_its_class(cache: Cache, tmp_path: Path) -> None:
    save(cache, full_vocabulary(cache.recipe), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_that_reads_otherwise_is_not_saved(cache: Cache, tmp_path: Path) -> None:
    vocabulary = trimmed_vocabulary([cache])
    student, teacher = student_tokenizer(cache, vocabulary), load_tokenizer(cache.tokenizer_folder)
    lines = corpus_lines(cache, teacher)
    require_same_reading(student, teacher, vocabulary, lines)
    state = json.loads(student.backend_tokenizer.to_str())
    state["model"]["vocab"][5:] = state["model"]["vocab"][:4:-1]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="<unk>")
    with pytest.raises(
        CometError, match=r"^the student's tokenizer reads '.*' as .*, the teacher's as .*: this token"
    ) as e:
        require_same_reading(other, teacher, vocabulary, lines)
    assert str(e.value).endswith("this tokenizer cannot be trimmed; use --vocabulary full")
    other.model_max_length = 512
    with pytest.raises(CometError, match=r"^the student's tokenizer reads '"):
        save_student_tokenizer(other, ["input_ids"], tmp_path, [cache], vocabulary)
    state["model"]["vocab"] = [entry for entry in state["model"]["vocab"] if len(entry[0]) > 1]
    state["model"]["unk_id"] = [entry[0] for entry in state["model"]["vocab"]].index("<unk>")
    without_letters = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    gains_unknown = PreTrainedTokenizerFast(tokenizer_object=without_letters, unk_token="<unk>")
    with pytest.raises(CometError, match="use --vocabulary full"):
        require_same_reading(gains_unknown, teacher, vocabulary, FOREIGN)
