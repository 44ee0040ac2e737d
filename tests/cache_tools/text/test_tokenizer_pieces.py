"""Long texts are tokenised in pieces, in bounded memory, to the tokens of the whole."""

from pathlib import Path

import pytest
from helpers.tiny_teachers import TEACHERS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from cache_tools.errors import CometError
from cache_tools.text.corpus import _chunks
from cache_tools.text.model_tokenizer import load_teacher_tokenizer
from cache_tools.text.tokenizer import LONG, encode_texts, pieces, reads_in_pieces


@given(st.lists(st.text(" abẹ\n\t", max_size=9)).map(" ".join), st.integers(1, 20))
def test_pieces_are_the_text_cut_before_single_spaces(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(len(piece) >= size for piece in found[:-1])
    assert all(piece[0] == " " and not piece[1].isspace() for piece in found[1:])
    assert all(not piece[-1].isspace() for piece in found[:-1])


@pytest.mark.parametrize("family", ["sample", *TEACHERS])
def test_a_long_text_has_the_tokens_of_the_whole(
    family: str, tmp_path: Path, sample_text: Path, sample_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "sample":
        folder = sample_teacher
    else:
        folder = tmp_path
        TEACHERS[family](folder, sample_text)
    tokenizer = load_teacher_tokenizer(str(folder))
    assert reads_in_pieces(tokenizer.backend_tokenizer)
    text = sample_text.read_text(encoding="utf-8").replace("\n", " \n ")
    expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr("cache_tools.text.tokenizer.LONG", 300)
    found, short = encode_texts(tokenizer, [text, "Umunsi mwiza"])
    assert found.tolist() == expected
    assert short.tolist() == tokenizer.backend_tokenizer.encode("Umunsi mwiza", add_special_tokens=False).ids


def test_a_long_text_ends_with_the_piece_that_reaches_the_limit(
    sample_text: Path, sample_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_teacher_tokenizer(str(sample_teacher))
    text = sample_text.read_text(encoding="utf-8").replace("\n", " ")
    monkeypatch.setattr("cache_tools.text.tokenizer.LONG", 300)
    (whole,), (begun,) = encode_texts(tokenizer, [text]), encode_texts(tokenizer, [text], 500)
    assert 500 <= len(begun) < 700 < len(whole) and begun.tolist() == whole[: len(begun)].tolist()


def test_one_that_reads_across_spaces_is_not_cut(sample_text: Path) -> None:
    across = Tokenizer(models.BPE())
    across.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    across.train_from_iterator(["Umunsi mwiza , abantu bose baje 12.5 km"] * 20, trainer)
    assert not reads_in_pieces(across)


@given(st.lists(st.sampled_from([1, 5, LONG // 3, LONG - 1, LONG + 7]), max_size=12))
def test_chunks_hold_few_characters_or_one_document(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    chunks = list(_chunks(texts))
    assert [text for chunk in chunks for text in chunk] == texts
    assert all(sum(map(len, chunk)) <= LONG or len(chunk) == 1 for chunk in chunks)


@pytest.mark.parametrize("texts", [["a" * 30 + "Bx x 1"], ["a" * 30 + "Bx x 1", "b " * LONG]])
def test_a_panic_of_the_library_is_one_error(sample_teacher: Path, texts: list[str]) -> None:
    """Here of an expression that a cache may not hold, since it matches in too many ways."""
    tokenizer = load_teacher_tokenizer(str(sample_teacher))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]?" * 30 + "[A-Z0-9][0-9]"), "isolated")
    with pytest.raises(CometError, match=r"^a text cannot be tokenised \(.*retry-limit.*\); is tokenizer"):
        encode_texts(tokenizer, texts)
