"""What a cache says ends up in a card as text, and as nothing else."""

from cache_tools.templates import as_markdown
from comet.report.analysis import AnnotatedRow, Guess, MaskedPosition
from comet.report.summary import filled_in


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
        row(("▁ya", 0.05), ("x\x1b", 0.5), ("▁neza", 0.4)),
        row(("▁akunda", 0.2), ("ma", 0.7), ("▁neza", 0.6)),
    )
    assert filled_in(before, after) == [
        "a validation row, and the best token at its first targets: <s> Data [1] gusu[2] [3]</s>",
        "       label   teacher     student before  student after",
        "  [1]  akunda  akunda 22%  ya 5%           akunda 20%",
        "  [2]  ma      mo 90%      x\\x1b 50%       ma 70%",
        "  [3]  neza    –           neza 40%        neza 60%",
    ]


def test_a_row_without_targets_shows_nothing() -> None:
    empty = AnnotatedRow("Validation row 1", ["<s>", "▁Data", "</s>"], [], 0)
    assert filled_in(empty, empty) == []
