"""Rows packed from documents, and the documents chosen for validation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_tools.text.packing import document_hash, is_validation, pack, validation_share

BOS, EOS, FIRST_ID = 0, 2, 5


def numbered_documents(lengths: list[int]) -> list[NDArray[np.int32]]:
    """Documents of these lengths whose tokens count up through all of them, so that each token says where it was."""
    tokens = np.arange(FIRST_ID, FIRST_ID + sum(lengths), dtype=np.int32)
    return np.split(tokens, np.cumsum(lengths)[:-1]) if lengths else []


def packed(lengths: list[int], seq_len: int) -> list[list[int]]:
    return [row.tolist() for row in pack(numbered_documents(lengths), seq_len, BOS, EOS)]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([3, 2], [[0, 5, 6, 7, 2, 8, 9, 2]]),
        ([3, 3], [[0, 5, 6, 7, 2, 8, 9, 2], [0, 10, 2]]),
        ([5, 1], [[0, 5, 6, 7, 8, 9, 2], [0, 10, 2]]),  # a separator alone would have fitted: one token short
        ([6, 1], [[0, 5, 6, 7, 8, 9, 10, 2], [0, 11, 2]]),
        ([4, 9], [[0, 5, 6, 7, 8, 2, 9, 2], [0, 10, 11, 12, 13, 14, 15, 2], [0, 16, 17, 2]]),
        ([14], [[0, 5, 6, 7, 8, 9, 10, 2], [0, 11, 12, 13, 14, 15, 16, 2], [0, 17, 18, 2]]),
        ([0, 2, 0, 0, 1, 0], [[0, 5, 6, 2, 7, 2]]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_pack_by_example(lengths: list[int], rows: list[list[int]]) -> None:
    assert packed(lengths, seq_len=8) == rows


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 40), max_size=25), st.integers(8, 24))
def test_packing_keeps_every_token_in_order(lengths: list[int], seq_len: int) -> None:
    rows = packed(lengths, seq_len)
    assert all(row[0] == BOS and row[-1] == EOS for row in rows)
    assert [t for row in rows for t in row if t >= FIRST_ID] == list(range(FIRST_ID, FIRST_ID + sum(lengths)))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 40), max_size=25), st.integers(8, 24))
def test_all_rows_but_the_last_are_full(lengths: list[int], seq_len: int) -> None:
    sizes = [len(row) for row in packed(lengths, seq_len)]
    assert all(size in (seq_len - 1, seq_len) for size in sizes[:-1])
    assert all(3 <= size <= seq_len for size in sizes[-1:])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 40), max_size=25), st.integers(8, 24))
def test_separators_stand_exactly_between_documents(lengths: list[int], seq_len: int) -> None:
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in packed(lengths, seq_len):
        inside = row[1:-1]
        starts = [0, *(i + 1 for i, token in enumerate(inside) if token == EOS)]
        pieces = [inside[a:b] for a, b in zip(starts, [s - 1 for s in starts[1:]] + [len(inside)], strict=True)]
        documents = [{int(document_of[token - FIRST_ID]) for token in piece} for piece in pieces]
        assert all(len(document) == 1 for document in documents)
        assert len(set.union(*documents)) == len(pieces)


def test_packing_is_lazy() -> None:
    def endless() -> object:
        while True:
            yield np.full(5, FIRST_ID, dtype=np.int32)

    assert next(pack(endless(), 8, BOS, EOS)).tolist() == [BOS, 5, 5, 5, 5, 5, EOS]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "share"), [(0, 0.1), (50_000, 0.1), (100_000, 0.1), (200_000, 0.05), (1_000_000, 0.01), (1e9, 0.01)]
)
def test_share_of_the_validation_documents(targets: float, share: float) -> None:
    assert validation_share(targets) == pytest.approx(share)


def test_validation_documents_are_chosen_by_their_text() -> None:
    hashes = [document_hash(f"interuro ya {n}") for n in range(20_000)]
    assert len(set(hashes)) == len(hashes)
    for share in (0.01, 0.1):
        chosen = np.mean([is_validation(h, share) for h in hashes])
        assert chosen == pytest.approx(share, abs=4 * np.sqrt(share / len(hashes)))
    assert all(is_validation(h, 0.1) for h in hashes if is_validation(h, 0.01))
    assert [is_validation(h, 0.5) for h in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [True, True, False, False]
