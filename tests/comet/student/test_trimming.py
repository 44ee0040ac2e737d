"""BPE with fewer tokens: text of kept tokens is read as before, by every kind of BPE, also by unlikely ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_teachers import BYTES, byte_fallback
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from comet.student.trimming import Merging, required_ids, trimmed_state

SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", "<mask>"]
OTHER_TEXT = ["Zażółć gęślą jaźń 👩🏽‍💻", "ልጆቹ ወደ ትምህርት ቤት", "<s> x </s>", "", "  two  spaces\tand a tab"]


@pytest.fixture(scope="module")
def lines(sample_text: Path) -> list[str]:
    return sample_text.read_text(encoding="utf-8").splitlines()


def byte_level(lines: list[str], ignore_merges: bool = False) -> Tokenizer:
    """As in RoBERTa, ModernBERT; with `ignore_merges` as in Llama 3: a whole word of the vocabulary is never joined."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def gemma(lines: list[str]) -> Tokenizer:
    """As in Gemma, where a tab is a character only, here k; and characters that the text lacks."""
    whole = byte_fallback(lines, SPECIAL, without=("<0x6B>",))
    state = json.loads(whole.to_str())
    state["model"]["vocab"] |= {token: whole.get_vocab_size() + i for i, token in enumerate("łሰ")}
    return Tokenizer.from_str(json.dumps(state))


def marked(lines: list[str]) -> Tokenizer:
    """As in HerBERT and XLM, with both marks that the library knows."""
    marks = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **marks))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False, **marks)
    )
    return tokenizer


KINDS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "byte level": byte_level,
    "byte level, whole words first": lambda lines: byte_level(lines, ignore_merges=True),
    "byte fallback": gemma,
    "marked": marked,
}


def trim(whole: Tokenizer, seen: set[int]) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of these ids and of what they need, and the new id of each old one."""
    state = json.loads(whole.to_str())
    kept = sorted(seen | set(required_ids(state["model"], seen)))
    student_id = [kept.index(i) if i in kept else -1 for i in range(whole.get_vocab_size())]
    return Tokenizer.from_str(json.dumps(trimmed_state(state, student_id))), student_id


def read_alike(whole: Tokenizer, trimmed: Tokenizer, student_id: list[int], lines: list[str]) -> int:
    """How many lines are of kept tokens only; all these are read alike."""
    found = 0
    for line in lines:
        ids = [student_id[i] for i in whole.encode(line).ids]
        if min(ids, default=0) >= 0:
            assert trimmed.encode(line).ids == ids, line
            found += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_kept_tokens_is_read_as_before(kind: str, lines: list[str]) -> None:
    whole = KINDS[kind](lines)
    seen = {i for encoding in whole.encode_batch(lines[:60]) for i in encoding.ids} | set(range(len(SPECIAL)))
    trimmed, student_id = trim(whole, seen)
    assert len(seen) < trimmed.get_vocab_size() < whole.get_vocab_size()
    assert len(json.loads(trimmed.to_str())["model"]["merges"]) < len(json.loads(whole.to_str())["model"]["merges"])
    words = [" ".join(line.split()[i : i + 2]) for line in lines for i in range(0, len(line.split()), 2)]
    assert read_alike(whole, trimmed, student_id, lines[:60]) == 60
    assert read_alike(whole, trimmed, student_id, words) > 300
    for line in [*lines, *OTHER_TEXT]:
        unknown = [tokenizer.encode(line).tokens.count("<unk>") for tokenizer in (whole, trimmed)]
        assert unknown[0] == unknown[1], line


def test_characters_that_bytes_spell_are_not_kept(lines: list[str]) -> None:
    whole = gemma(lines)
    trimmed, _ = trim(whole, set(whole.encode("aba").ids))
    kept = trimmed.get_vocab()
    assert {"a", "b", "k", "<0xFF>"} <= set(kept) and not {"ł", "ሰ", "e"} & set(kept)
    assert trimmed.encode("ke").tokens == ["k", "<0x65>"]
    assert trimmed.encode("ł").tokens == ["<0xC5>", "<0x82>"] and whole.encode("ł").tokens == ["ł"]


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_other_text_decodes_to_itself(kind: str, lines: list[str]) -> None:
    """Nothing is lost where words fall into smaller tokens."""
    whole = KINDS[kind](lines)
    trimmed, _ = trim(whole, set(whole.encode(lines[0]).ids) | set(range(len(SPECIAL))))
    for line in [*lines[:40], *OTHER_TEXT[:2]]:
        tokens = trimmed.encode(line).tokens
        if kind == "byte fallback":
            spelt = b"".join(bytes([int(t[3:5], 16)]) if t in BYTES else t.encode() for t in tokens)
            assert spelt.decode().replace("▁", " ") == line
        else:
            bytes_of = {c: i for i, c in byte_characters().items()}
            assert bytes(bytes_of[c] for token in tokens for c in token).decode() == line


def byte_characters() -> dict[int, str]:
    """The character of each byte in a byte-level BPE (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def test_without_the_symbols_on_the_way_tokens_are_not_reached(lines: list[str]) -> None:
    """What the rule is for: with the tokens of the text alone, and all merges among them, words fall apart."""
    whole = byte_level(lines)
    state = json.loads(whole.to_str())
    seen = {i for encoding in whole.encode_batch(lines) for i in encoding.ids}
    vocab = {token: i for token, i in state["model"]["vocab"].items() if i in seen or len(token) == 1}
    merges = [m for m in state["model"]["merges"] if m[0] in vocab and m[1] in vocab and "".join(m) in vocab]
    seen_only = Tokenizer.from_str(json.dumps(state | {"model": state["model"] | {"vocab": vocab, "merges": merges}}))
    assert any(seen_only.encode(line).tokens != whole.encode(line).tokens for line in lines)


def test_special_and_added_tokens_keep_their_place(lines: list[str]) -> None:
    """Added tokens that the model itself lacks, before and after its own ids, as in ModernBERT; a template's ids."""
    whole = byte_level(lines)
    whole.add_special_tokens([AddedToken("<extra>", special=True)])
    whole.add_tokens([AddedToken("Rwanda", normalized=False), AddedToken("Kigali", normalized=False)])
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> <extra>",
        special_tokens=[(token, whole.token_to_id(token)) for token in ("<s>", "</s>", "<extra>")],
    )
    text = "umujyi wa Kigali mu Rwanda"
    seen = set(whole.encode("umujyi wa Kigali mu").ids) | {0, 1, 2, 3, 4}
    trimmed, student_id = trim(whole, seen)
    assert trimmed.token_to_id("Rwanda") is None
    assert trimmed.token_to_id("<mask>") == 4
    last = trimmed.get_vocab_size() - 1
    assert trimmed.encode("umujyi wa Kigali").ids[-1] == trimmed.token_to_id("<extra>") == last - 1
    assert trimmed.token_to_id("Kigali") == last
    assert read_alike(whole, trimmed, student_id, ["umujyi wa Kigali", "Kigali<mask> wa"]) == 2
    assert trimmed.encode(text).tokens[-5:-2] != whole.encode(text).tokens[-5:-2]


def test_merges_as_lines_of_text(lines: list[str]) -> None:
    """As tokenizer.json wrote them until 2024: "a b" for a pair."""
    whole = byte_level(lines)
    model = json.loads(whole.to_str())["model"]
    older = model | {"merges": [" ".join(merge) for merge in model["merges"]]}
    assert Merging(older).rank == Merging(model).rank


def test_of_a_merge_listed_twice_the_last_counts() -> None:
    vocab = {token: i for i, token in enumerate([*SPECIAL, "a", "b", "c", "ab", "bc"])}
    state = {"model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["b", "c"], ["a", "b"]]}}
    whole = Tokenizer.from_str(json.dumps(state))
    assert whole.encode("abc").tokens == ["a", "bc"]
    assert Merging(state["model"]).rank == {("b", "c"): 1, ("a", "b"): 2}
    trimmed = Tokenizer.from_str(json.dumps(trimmed_state(state, list(range(len(vocab))))))
    assert trimmed.encode("abc").tokens == ["a", "bc"]


def test_one_pair_is_joined_at_a_time() -> None:
    """The first ab of abab makes ab + a possible, which comes before the second ab."""
    check([("ab", "a"), ("a", "b"), ("aba", "b")], "", {}, ["abab", "aba b ab", "ababab"])


pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)


@settings(max_examples=300)
@given(
    parts=pairs,
    order=st.randoms(use_true_random=False),
    words=st.lists(st.text("abc", min_size=1, max_size=14), min_size=1, max_size=4),
    others=st.lists(st.text("abc", min_size=1, max_size=14), max_size=20),
    kind=st.sampled_from(["plain", "whole words first", "bytes", "marked"]),
)
def test_any_bpe(parts: list[tuple[int, int]], order: Any, words: list[str], others: list[str], kind: str) -> None:
    """Merges of any parts in any order, also those that give one token twice or can never be reached."""
    symbols, merges = ["a", "b", "c"], []
    for left, right in parts:
        merge = symbols[left % len(symbols)], symbols[right % len(symbols)]
        merges.append(merge)
        if len(merge[0] + merge[1]) <= 12:
            symbols.append("".join(merge))
        else:
            merges.pop()
    order.shuffle(merges)
    model: dict[str, Any] = {"whole words first": {"ignore_merges": True}, "bytes": {"byte_fallback": True}}.get(
        kind, {}
    )
    check(merges, "##" if kind == "marked" else "", model, [" ".join(words), *others])


def check(merges: list[tuple[str, str]], mark: str, others: dict[str, Any], lines: list[str]) -> None:
    """A BPE with these merges, trimmed to the tokens of the first line, reads all lines of kept tokens as before."""
    if mark:  # a symbol inside a word; the first of a word has none
        merges = [pair for a, b in merges for pair in ((a, mark + b), (mark + a, mark + b))]
    joined = [left + right[len(mark) :] for left, right in merges]
    characters = [m + c for m in dict.fromkeys(("", mark)) for c in "abcd"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *BYTES, *characters, *joined]))}
    marks = {"continuing_subword_prefix": mark} if mark else {}
    whole = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", **others, **marks))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    seen = set(whole.encode(lines[0]).ids) | set(range(len(SPECIAL)))
    trimmed, student_id = trim(whole, seen)
    assert read_alike(whole, trimmed, student_id, [*lines, *lines[0].split()]) >= 1
