"""report.html is well-formed, loads nothing, shows every figure, and nothing in a cache can become markup."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.html_tree import Tree

from comet.report.analysis import Analysis, AnnotatedRow, Guess, MapPair, MaskedPosition
from comet.report.page import MOST_POINTS, History, page, thin
from comet.report.summary import attention_note
from comet.train.objective import DEFAULT
from comet.train.validation import Validation

HOSTILE = """</title></style><script>alert(1)</script><img src=http://x/y onerror=alert(2)>"'&]]>--><svg onload=x>"""
HEADINGS = ["Training", "Frequent and rare tokens", "Calibration", "Attention", "Guesses", "How this student was made"]

BEFORE = Validation(targets=50, kl=3.5, cross_entropy=8.0, accuracy=0.05, teacher_accuracy=0.41, agreement=0.07)
AFTER = replace(BEFORE, kl=1.25, cross_entropy=6.0, accuracy=0.21, agreement=0.33)
HISTORY = History(
    losses=[(10 * i, {"kd": 3 / i, "attention": 0.5 / i}) for i in range(1, 30)],
    validations=[(0, BEFORE), (100, AFTER), (200, replace(AFTER, kl=1.5))],
    best_step=100,
)
FACTS = [("cache", "a" * 64), ("seed", "0")]


def analyse(text: str = "▁umwana") -> Analysis:
    generator = np.random.default_rng(0)
    count = np.array([1, 5, 20, 300, 45_000] * 10)
    correct, teacher = generator.random(50) < 0.3, generator.random(50) < 0.6
    place = MaskedPosition(1, text, [Guess(text, 0.6, True), Guess("▁a", 0.001, False)], [Guess(text, 0.4, True)])
    attention = np.full((4, 4), 0.25, dtype=np.float32)
    return Analysis(
        target_id=count,
        count=count,
        kl=generator.random(50) * 3,
        correct=correct,
        teacher_correct=teacher,
        agrees=correct,
        confidence=generator.random(50),
        teacher_confidence=generator.random(50),
        maps=[MapPair(0, 3, 1, attention, np.eye(4, dtype=np.float32), 0.7)],
        examples=[AnnotatedRow("Validation row 1", ["<s>", "<mask>", text, "</s>"], [place], 1)],
        parameters=1_000,
        teacher_parameters=10_000,
    )


def report(**changes: Any) -> str:
    arguments = {
        "title": "kin-student",
        "facts": FACTS,
        "kl_note": "The KL is bucketed.",
        "history": HISTORY,
        "before": BEFORE,
        "after": AFTER,
        "analysis": analyse(),
    }
    return page(**(arguments | changes))


def test_every_figure_is_there() -> None:
    tree = Tree(report())
    assert tree.of("h2") == HEADINGS
    assert tree.of("strong") == [
        "Validation KL",
        "Logits: KL to the teacher × T², training",
        "Attention, training",
        "Validation KL",
        "Accuracy",
        "Reliability",
        "Confidence",
        "Validation row 1, student layer 1",
    ]
    assert Counter(tag for tag, _ in tree.elements)["svg"] == 7
    assert Counter(tag for tag, _ in tree.elements)["img"] == 2
    assert tree.of("dd")[:2] == ["1.250", "before 3.500"]
    assert {"1,000", "teacher 10,000", "90% smaller", "21.0%", "teacher 41.0%", "33.0%"} <= set(tree.of("dd"))
    assert tree.of("bdi") == ["<s>", "<mask>", "▁umwana", "</s>", "▁umwana", "▁umwana", "▁a", "▁umwana"]
    assert [text for text in tree.of("small") if "%" in text] == [
        "70% of the attention on the same blocks", "60%", "<1%", "40%",
    ]  # fmt: skip
    labels = tree.of("text")
    first = labels.index("< 10")
    assert labels[first : first + 8] == ["< 10", "20", "≥ 10", "10", "≥ 100", "10", "≥ 10k", "10"]
    assert "best: 1.250" in labels
    text = "".join(tree.of("p"))
    assert "that of step 100" in text and "of the teacher only those that the cache keeps" in text
    assert [text for text in tree.of("div") if ", layer" in text] == ["teacher, layer 3", "student, layer 1"]


def test_a_student_of_few_parameters_is_not_100_percent_smaller() -> None:
    few = report(analysis=replace(analyse(), parameters=1_290_000, teacher_parameters=560_000_000))
    assert "more than 99% smaller" in Tree(few).of("dd")


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = report()
    tree = Tree(html)
    assert not {tag for tag, _ in tree.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in tree.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,"), (tag, name)
    assert not re.search(r"url\(|@import|https?://|//[a-z]", re.sub(r"base64,[^\"]*", "", html))
    policy = next(a for tag, a in tree.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_nothing_in_a_cache_becomes_markup() -> None:
    """The same elements with the same attributes, whatever the texts say."""
    history = replace(HISTORY, losses=[(1, {HOSTILE: 1.0}), (2, {HOSTILE: 2.0})])
    harmless = report(history=replace(HISTORY, losses=[(1, {"kd": 1.0}), (2, {"kd": 2.0})]))
    hostile = report(
        title=HOSTILE, facts=[(HOSTILE, HOSTILE), ("seed", HOSTILE)], kl_note=HOSTILE, history=history,
        analysis=analyse(HOSTILE),
    )  # fmt: skip
    good, bad = Tree(harmless), Tree(hostile)
    assert [(tag, set(attributes)) for tag, attributes in bad.elements] == [
        (tag, set(attributes)) for tag, attributes in good.elements
    ]
    changed = {
        name
        for (_, ours), (_, theirs) in zip(good.elements, bad.elements, strict=True)
        for name in ours
        if ours[name] != theirs[name]
    }
    assert changed == {"aria-label"}
    assert bad.of("bdi").count(HOSTILE) == 4
    assert bad.of("td")[-2:] == [HOSTILE, HOSTILE] and bad.of("th")[-2:] == [HOSTILE, "seed"]
    assert bad.of("h1") == bad.of("title")[:1] == [HOSTILE]


def test_control_characters_and_lone_surrogates_can_be_written() -> None:
    title = Tree(report(title="a\x00b\x1b\ud800\u0085c")).of("h1")
    assert title == ["a\ufffdb\ufffd\ufffd\ufffdc"]
    html = report(title="\ud800", facts=[("x", "\x00\udfff")], analysis=analyse("\x00\ud812"))
    assert "\x00" not in html.encode("utf-8").decode("utf-8")


def test_without_a_tail_at_temperature_one_the_loss_replaces_kl() -> None:
    nan = float("nan")
    before, after = replace(BEFORE, kl=nan), replace(AFTER, kl=nan)
    look = replace(analyse(), kl=np.full(50, nan))
    history = replace(HISTORY, validations=[(0, before), (100, after)])
    tree = Tree(report(before=before, after=after, history=history, analysis=look))
    assert tree.of("dd")[:2] == ["not measured", "before not measured"]
    assert tree.of("strong")[0] == "Masked-token loss, validation"
    assert "Validation KL" not in tree.of("strong")
    assert "best: 6.000" in tree.of("text")


def test_a_student_of_labels_alone_is_judged_by_its_labels() -> None:
    """Its best step is that of the lowest loss, wherever the KL, which it does not learn, goes meanwhile."""
    validations = [(0, BEFORE), (100, AFTER), (200, replace(AFTER, kl=9.0, cross_entropy=5.5))]
    tree = Tree(report(history=History([], validations, 200, learns_labels=True)))
    assert tree.of("strong")[0] == "Masked-token loss, validation"
    assert "best: 5.500" in tree.of("text")


def test_a_page_without_maps_curves_or_examples_is_whole() -> None:
    look = replace(analyse(), maps=[], examples=[])
    html = report(analysis=look, history=History([], [], 0))
    assert [h for h in HEADINGS if h not in Tree(html).of("h2")] == ["Attention"]
    assert "No epoch brought the student closer" in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html)


def test_a_note_stands_under_the_part_of_the_loss_that_it_is_on() -> None:
    notes = attention_note(DEFAULT)
    assert notes == {
        "attention": "nats; falls at best to the entropy of the teacher's attention, which the cache lacks, not to 0"
    }
    assert notes["attention"] in Tree(report(notes=notes)).of("small")
    assert "need not fall to 0" in attention_note(replace(DEFAULT, attention_loss="mse"))["attention"]
    assert attention_note(replace(DEFAULT, attention_loss="projection")) == {}


def test_points_that_are_not_finite_are_left_out() -> None:
    losses = [(1, {"kd": float("inf")}), (2, {"kd": 2.0}), (3, {"kd": 1.0}), (4, {"hard": float("nan")})]
    tree = Tree(report(history=replace(HISTORY, losses=losses)))
    lines = [a["d"] or "" for tag, a in tree.elements if tag == "path" and a.get("class") == "line student"]
    assert lines[1].count("L") == 1 and not any("nan" in d or "inf" in d for d in lines)
    assert "Labels: cross-entropy, training" not in tree.of("strong")


def test_the_page_says_how_many_targets_it_looked_at() -> None:
    assert "<p>50 validation targets by how often" in report()
    some = report(after=replace(AFTER, targets=1234))
    assert "<p>The first 50 of 1,234 validation targets by how often" in some
    assert "Over the first 50 of 1,234 validation targets." in some
    of_two = report(after=replace(AFTER, targets=1234), by_cache=[("one",), ("two",)])
    assert "<p>The first of each cache, 50 of 1,234 validation targets by how often" in of_two
    assert "Over the first of each cache, 50 of 1,234 validation targets." in of_two


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS])
def test_long_curves_are_averaged(count: int) -> None:
    points = [(float(i), float(i % 7)) for i in range(count)]
    found = thin(points)
    assert len(found) <= MOST_POINTS
    if count <= MOST_POINTS:
        assert found == points
    size = -(-count // MOST_POINTS)
    assert found[0] == pytest.approx(tuple(np.mean(points[:size], axis=0)))
    assert found[-1] == pytest.approx(tuple(np.mean(points[(len(found) - 1) * size :], axis=0)))
