"""What is said of a training; and what a cache says ends up in a card as text, and as nothing else."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache_tools import Cache
from cache_tools.store.copy import cut
from cache_tools.templates import as_markdown
from comet.distillation import distill
from comet.report.analysis import AnnotatedRow, Guess, MaskedPosition
from comet.report.summary import headline, predictions_table, smaller, summary
from comet.settings import StudentConfig
from comet.train.objective import DEFAULT


def test_markup_of_a_cache_is_text_in_a_card() -> None:
    assert as_markdown("Davlan/afro-xlmr-large (mit)") == "Davlan/afro-xlmr-large (mit)"
    assert as_markdown("a\n# b\x1b") == r"a\\n\# b\\x1b"
    assert as_markdown("[x](http://y) <script> `z` ![i](u)") == r"\[x\](http://y) \<script\> \`z\` \!\[i\](u)"
    assert len(as_markdown("x" * 10_000)) == 400


def row(*student: tuple[str, float]) -> AnnotatedRow:
    """Of three targets; the second is a replaced token, and the cache holds nothing of the third."""
    labels = [(2, "▁akunda", [Guess("▁akunda", 0.22, True)]), (4, "ma", [Guess("mo", 0.9, False)]), (5, "▁neza", [])]
    positions = [
        MaskedPosition(position, label, teacher, [Guess(text, probability, text == label)])
        for (position, label, teacher), (text, probability) in zip(labels, student, strict=True)
    ]
    return AnnotatedRow("Validation row 1", ["<s>", "▁Data", "<mask>", "▁gusu", "xx", "<mask>", "</s>"], positions, 3)


def test_the_first_targets_of_a_row_are_shown_before_and_after() -> None:
    before, after = (
        row(("▁ya", 0.004), ("x\x1b", 0.5), ("▁neza", 0.4)),
        row(("▁akunda", 0.2), ("ma", 0.7), ("▁neza", 0.6)),
    )
    assert predictions_table(before, after) == [
        "a validation row, and the best token at its first targets: <s> Data [1] gusu[2] [3]</s>",
        "       label   teacher     student before  student after",
        "  [1]  akunda  akunda 22%  ya <1%          akunda 20%",
        "  [2]  ma      mo 90%      x\\x1b 50%       ma 70%",
        "  [3]  neza    –           neza 40%        neza 60%",
    ]


def test_a_row_without_targets_shows_nothing() -> None:
    empty = AnnotatedRow("Validation row 1", ["<s>", "▁Data", "</s>"], [], 0)
    assert predictions_table(empty, empty) == []


@pytest.mark.parametrize(
    ("learning_rate", "said", "in_page"),
    [
        (
            5.0,
            "stopped after 2 of 3 steps in [0-9]+ s, since 2 validations brought no improvement; best",
            "2 of 3; best",
        ),
        (1e-3, "3 steps in [0-9]+ s; best", "3 of 3; best"),
    ],
)
def test_a_training_that_stopped_early_says_why(
    cache: Cache, tmp_path: Path, learning_rate: float, said: str, in_page: str
) -> None:
    objective = replace(DEFAULT, patience=2)
    config = StudentConfig(
        tmp_path / "student", "nano", objective=objective, steps=3, learning_rate=learning_rate, validate_steps=1
    )
    line = summary([cache], objective, distill([cache], config)).splitlines()[0]
    assert re.match(f"{said} checkpoint at step [0-3], measured on [0-9]+ validation targets:$", line)
    assert f"<td>{in_page} checkpoint at step " in (tmp_path / "student.html").read_text(encoding="utf-8")


def test_a_student_of_a_part_is_not_said_to_be_of_all_the_text(cache: Cache, tmp_path: Path) -> None:
    result: Any = SimpleNamespace(output=tmp_path / "student", parameters=100, teacher_parameters=1000)
    text = f"{cache.provenance['text_tokens']:,} tokens of text"
    of = "student: Kinyarwanda, distilled from a teacher in the folder teacher"
    assert headline([cache], result) == f"{of} on {text}, 90% smaller"
    ranges = {"train": ((0, 1),), "validation": cache.extent.shards["validation"]}
    part = cut(cache, tmp_path / "part.zarr", replace(cache.extent, shards=ranges))
    assert headline([part], result) == f"{of} on a part of {text}, 90% smaller"


def test_two_caches_of_one_text_are_not_said_to_be_of_twice_as_much(cache: Cache, tmp_path: Path) -> None:
    result: Any = SimpleNamespace(output=tmp_path / "student", parameters=100, teacher_parameters=1000)
    assert headline([cache, cache], result) == headline([cache], result)


@pytest.mark.parametrize(
    ("parameters", "said"), [(84_400_000, "85%"), (5_600_000, "99%"), (1_290_000, "more than 99%")]
)
def test_no_student_is_said_to_be_100_percent_smaller(parameters: int, said: str) -> None:
    assert smaller(parameters, 560_000_000) == f"{said} smaller"
