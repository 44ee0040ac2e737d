"""The rows, masks, vocabulary and tokenizer of a built cache against the text and the teacher's own tokenizer.

The caches are read with plain zarr; packing and the choice of validation documents are written down here once more.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.builds import build, build_whole, groups_of
from numpy.typing import NDArray
from transformers import AutoTokenizer

GROUPS = ("train", "validation")
SEQ_LEN = 32
COMMON: dict[str, Any] = {"seq_len": SEQ_LEN, "attention_layers": "none", "top_k": 2, "rows_per_shard": 16}
CACHES: dict[str, dict[str, Any]] = {
    "all text": {},
    "8 views of 700 tokens": {"views": 8, "max_tokens": 700},
    "each word a document": {"max_tokens": 2500},  # more documents than are tokenised at once
}


@dataclass(frozen=True)
class Built:
    """A cache as plain zarr shows it, and the options and documents it was built with."""

    folder: Path
    options: dict[str, Any]
    texts: list[str]

    @property
    def views(self) -> int:
        return self.options.get("views", 1)

    @cached_property
    def groups(self) -> dict[str, dict[str, NDArray]]:
        return groups_of(self.folder)


@pytest.fixture(scope="module")
def tokenizer(sample_teacher: Path) -> Any:
    return AutoTokenizer.from_pretrained(sample_teacher)


@pytest.fixture(scope="module")
def texts(sample_text: Path) -> list[str]:
    return [line.strip() for line in sample_text.read_text().splitlines()]


@pytest.fixture(scope="module", params=list(CACHES))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sample_teacher: Path, texts: list[str]
) -> Built:
    folder = tmp_path_factory.mktemp("tokens")
    chosen = " ".join(texts).split() if request.param.startswith("each word") else texts
    return build_from(chosen, folder, sample_teacher, **CACHES[request.param])


def build_from(texts: list[str], folder: Path, teacher: Path, **changes: Any) -> Built:
    """Builds `folder/kin.zarr` from a text file with these documents."""
    text, out, options = folder / "text.txt", folder / "kin.zarr", COMMON | changes
    text.write_text("\n".join(texts))
    build_whole(out, teacher, text, folder / "log", **options)
    return Built(out, options, texts)


def documents(built: Built, tokenizer: Any) -> tuple[list[str], list[list[int]]]:
    """The documents that belong in the cache, with their ids: up to the one that reaches the limit."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in built.texts]
    total = np.cumsum([len(document) for document in ids])
    count = int(np.argmax(total >= built.options.get("max_tokens", total[-1]))) + 1
    return built.texts[:count], ids[:count]


def is_for_validation(text: str) -> bool:
    """A tenth of the documents of so small a corpus, by a hash of their text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") < 0.1 * 2**64


def unmasked(arrays: dict[str, NDArray]) -> list[list[int]]:
    """All rows as they were before masking, without padding."""
    ids = arrays["input_ids"].copy()
    row, slot = np.nonzero(arrays["target_position"] != 65535)
    ids[row, arrays["target_position"][row, slot]] = arrays["target_id"][row, slot]
    return [list(map(int, r[:n])) for r, n in zip(ids, arrays["length"], strict=True)]


def packed(ids: list[list[int]], bos: int, eos: int) -> list[list[int]]:
    """`<s> doc </s> doc … </s>`, what overflows goes on in the next row."""
    rows = [[bos]]
    for document in ids:
        rest = document
        while rest:
            if len(rows[-1]) > 1:
                if len(rows[-1]) > SEQ_LEN - 3:  # separator, one token and the last </s> do not fit
                    rows.append([bos])
                else:
                    rows[-1].append(eos)
            room = SEQ_LEN - 1 - len(rows[-1])
            rows[-1] += rest[:room]
            rest = rest[room:]
    return [[*row, eos] for row in rows]


def assert_rows_are_packed(built: Built, tokenizer: Any) -> None:
    """The rows are these documents, each in the one group that the hash of its text gives it."""
    chosen, ids = documents(built, tokenizer)
    for group in GROUPS:
        arrays = built.groups[group]
        mine = [d for text, d in zip(chosen, ids, strict=True) if is_for_validation(text) == (group == "validation")]
        rows = packed(mine, tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert unmasked(arrays) == rows * built.views
        assert (arrays["input_ids"][np.arange(SEQ_LEN) >= arrays["length"][:, None]] == tokenizer.pad_token_id).all()


def test_rows_are_the_packed_text_each_document_in_one_group(built: Built, tokenizer: Any) -> None:
    assert_rows_are_packed(built, tokenizer)


def test_decoded_rows_give_back_the_text(built: Built, tokenizer: Any) -> None:
    mine = AutoTokenizer.from_pretrained(built.folder / "tokenizer")
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    rows = [
        row
        for group in GROUPS
        for row in unmasked(built.groups[group])[: len(built.groups[group]["length"]) // built.views]
    ]
    pieces = [
        piece for row in rows for piece in mine.convert_ids_to_tokens(row) if piece not in mine.all_special_tokens
    ]
    found = "".join(pieces).replace("▁", " ").split()
    chosen, _ = documents(built, tokenizer)
    ordered = [text for wanted in (False, True) for text in chosen if is_for_validation(text) == wanted]
    assert found == " ".join(map(normalise, ordered)).split()


def test_vocabulary_is_a_count_over_the_tokenised_text(built: Built, tokenizer: Any) -> None:
    _, ids = documents(built, tokenizer)
    expected = Counter(i for document in ids for i in document if i not in tokenizer.all_special_ids)
    arrays = built.groups["vocabulary"]
    found = dict(zip(arrays["id"].tolist(), arrays["count"].tolist(), strict=True))
    assert list(found) == sorted(expected)
    assert found == expected


def test_targets_are_masked_as_the_teacher_learnt_it(built: Built, tokenizer: Any) -> None:
    kinds: Counter[str] = Counter()
    for group in GROUPS:
        arrays = built.groups[group]
        row, slot = np.nonzero(arrays["target_position"] != 65535)
        shown = arrays["input_ids"][row, arrays["target_position"][row, slot]]
        true = arrays["target_id"][row, slot]
        assert not np.isin(true, tokenizer.all_special_ids).any()
        other = shown[(shown != tokenizer.mask_token_id) & (shown != true)]
        assert np.isin(other, built.groups["vocabulary"]["id"]).all()
        kinds += Counter(
            {
                "mask": int((shown == tokenizer.mask_token_id).sum()),
                "kept": int((shown == true).sum()),
                "random": len(other),
            }
        )
    total = kinds.total()
    for kind, share in (("mask", 0.8), ("kept", 0.1), ("random", 0.1)):
        assert kinds[kind] / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5), kind


def test_every_view_masks_other_positions_until_all_were_masked(built: Built, tokenizer: Any) -> None:
    for group in GROUPS:
        arrays, rows = built.groups[group], unmasked(built.groups[group])
        per_view = len(rows) // built.views
        assert len(np.unique(arrays["row_key"])) == len(rows) == per_view * built.views
        for row, tokens in enumerate(rows[:per_view]):
            maskable = [p for p, token in enumerate(tokens) if token not in tokenizer.all_special_ids]
            masked = arrays["target_position"][row::per_view]  # [views, M]
            times = Counter(masked[masked != 65535].tolist())
            assert set(times) <= set(maskable)
            assert max(times.values()) - min(times[p] for p in maskable) <= 1
            if built.views == 8:  # 0.15 of a row's positions in each
                assert set(times) == set(maskable)


def test_excluded_documents_are_nowhere(tmp_path: Path, texts: list[str], tokenizer: Any, sample_teacher: Path) -> None:
    left_out = texts[3:60:3]
    (tmp_path / "test.txt").write_text("\n".join(f"  {text} " for text in left_out))
    cache = build_from(texts, tmp_path, sample_teacher, max_tokens=700, exclude=tmp_path / "test.txt")
    wanted = [text for text in texts if text not in left_out]
    assert_rows_are_packed(replace(cache, texts=wanted), tokenizer)


def test_repeated_documents_stay_in_one_group(
    tmp_path: Path, texts: list[str], tokenizer: Any, sample_teacher: Path
) -> None:
    assert_rows_are_packed(build_from(texts[:40] * 2, tmp_path, sample_teacher), tokenizer)


def test_a_text_cannot_write_special_tokens(
    tmp_path: Path, texts: list[str], tokenizer: Any, sample_teacher: Path
) -> None:
    special = [*tokenizer.all_special_tokens, "</s> <mask>"]
    hostile = [f"{text} {special[i % len(special)]}" for i, text in enumerate(texts)]
    cache = build_from(hostile, tmp_path, sample_teacher, max_tokens=1500)
    found = [token for row in unmasked(cache.groups["train"]) for token in row[1:-1]]
    assert {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}.isdisjoint(found)
    assert found.count(tokenizer.eos_token_id) < len(documents(cache, tokenizer)[0]), "more </s> than documents"
    pieces = "".join(tokenizer.convert_ids_to_tokens(found))
    assert pieces.count("mask") > 10, "<mask> in the text is text"


@pytest.mark.parametrize("for_validation", [False, True])
def test_one_long_document_gives_rows_of_both_groups(
    tmp_path: Path, texts: list[str], tokenizer: Any, sample_teacher: Path, for_validation: bool
) -> None:
    """As a book on one line; by its hash it would all be of one group."""
    book = next(b for i in range(99) if is_for_validation(b := f"{i} {' '.join(texts)}") == for_validation)
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    ended = build(tmp_path / "kin.zarr", sample_teacher, tmp_path / "book.txt", tmp_path / "log", **COMMON)
    assert ended.code == 0, ended.stderr
    assert "validation: one row in 10, since all documents would fall into one group" in ended.stdout
    train, validation = (unmasked(groups_of(tmp_path / "kin.zarr")[group]) for group in ("train", "validation"))
    assert len(validation) == (len(train) + len(validation)) // 10
    every = [row for at in range(0, len(train), 9) for row in (*train[at : at + 9], *validation[at // 9 : at // 9 + 1])]
    content = [token for row in every for token in row[1:-1]]
    assert content == tokenizer(book, add_special_tokens=False).input_ids, "each row once, in order"


def test_a_text_that_is_too_short_for_both_groups(tmp_path: Path, texts: list[str], sample_teacher: Path) -> None:
    (tmp_path / "one.txt").write_text("\n".join(texts[:1]))
    ended = build(tmp_path / "one.zarr", sample_teacher, tmp_path / "one.txt", tmp_path / "log", **COMMON)
    line = r"error: --text: \d+ tokens in all, which fit into one row of 32 \(--seq-len\); expected at least two rows, "
    line += "one for training and one for validation; give more text, or a smaller --seq-len\n"
    assert re.fullmatch(line, ended.stderr)
    assert (ended.code, ended.stdout) == (2, "")
    assert not (tmp_path / "one.zarr").exists()


@pytest.mark.slow
@pytest.mark.parametrize("documents", [1, 800])
def test_memory_does_not_grow_with_the_length_of_documents(
    tmp_path: Path, texts: list[str], sample_teacher: Path, documents: int
) -> None:
    """8 MB of text, of which 2,000 tokens are wanted: in 20,000 lines, and in a few long ones."""
    words = " ".join(texts) + " "
    peaks = []
    for count in (20_000, documents):
        length = 8_000_000 // count
        line = (words * (length // len(words) + 2))[:length]
        (tmp_path / f"{count}.txt").write_text("".join(f"{i} {line}\n" for i in range(count)), encoding="utf-8")
        options = {"max_tokens": 2000, "attention_layers": "none", "start_layers": "none"}
        ended = build(
            tmp_path / f"{count}.zarr", sample_teacher, tmp_path / f"{count}.txt", tmp_path / "log", **COMMON | options
        )
        assert ended.code == 0, ended.stderr
        peaks.append(ended.peak_bytes)
    assert peaks[1] < peaks[0] + 100 * 2**20, [f"{peak / 2**20:.0f} MiB" for peak in peaks]


def test_unknown_tokens_are_neither_masked_nor_counted(
    tmp_path: Path, texts: list[str], tokenizer: Any, sample_teacher: Path
) -> None:
    cache = build_from([f"{text} ☃" for text in texts], tmp_path, sample_teacher, max_tokens=500)
    unknown = tokenizer.unk_token_id
    assert any(unknown in row for row in unmasked(cache.groups["train"]))
    assert unknown not in cache.groups["train"]["target_id"]
    assert unknown not in cache.groups["vocabulary"]["id"]
