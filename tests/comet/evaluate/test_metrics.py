"""Scores agree with the examples in scikit-learn's and seqeval's own documentation, and count nothing twice."""

import math
import random

import pytest
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import f1_score

from comet.evaluate.metrics import accuracy, entity_f1, most_frequent_alone, retained, retained_interval, weighted_f1

# scikit-learn's example of f1_score, seqeval's of its README
SKLEARN_GOLD, SKLEARN_PREDICTED = [[c] for c in "012012"], [[c] for c in "021001"]
SEQEVAL_GOLD = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
SEQEVAL_PREDICTED = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def test_the_documented_examples() -> None:
    assert weighted_f1(SKLEARN_GOLD, SKLEARN_PREDICTED) == pytest.approx(0.26666, abs=1e-4)
    assert accuracy(list("0123"), list("0213")) == 0.5
    assert entity_f1(SEQEVAL_GOLD, SEQEVAL_PREDICTED) == 0.5
    assert accuracy(SEQEVAL_GOLD, SEQEVAL_PREDICTED) == 0.8


def test_the_libraries_on_random_labels() -> None:
    chance = random.Random(0)
    gold, predicted = ([[chance.choice("abc")] for _ in range(200)] for _ in range(2))
    expected = f1_score([g for (g,) in gold], [p for (p,) in predicted], average="weighted")
    assert weighted_f1(gold, predicted) == expected
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    gold, predicted = ([[chance.choice(tags) for _ in range(12)] for _ in range(50)] for _ in range(2))
    assert entity_f1(gold, predicted) == seqeval_f1(gold, predicted) > 0


def test_a_class_that_is_never_predicted_counts_as_missed() -> None:
    gold = [["positive"], ["positive"], ["negative"], ["neutral"]]
    # by hand: positive 2/2 found, 4 predicted: F1 2/3, half of the weight
    assert weighted_f1(gold, [["positive"]] * 4) == pytest.approx(0.5 * 2 / 3)


def test_no_entity_at_all_is_zero_and_a_wrong_end_is_wrong() -> None:
    assert entity_f1([["O", "O"]], [["O", "O"]]) == 0.0
    assert entity_f1([["B-PER", "I-PER"]], [["B-PER", "O"]]) == 0.0
    assert entity_f1([["B-PER", "I-PER"]], [["B-LOC", "I-LOC"]]) == 0.0


@pytest.mark.parametrize("score", [weighted_f1, accuracy, entity_f1])
def test_missing_predictions_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"[Ii]nconsistent"):
        score([["O"], ["O"]], [["O"]])


def test_retained_is_the_ratio_of_means() -> None:
    assert retained([0.4, 0.6], [0.8, 1.2]) == 0.5
    assert math.isnan(retained([0.4], [0.0]))


def test_the_interval_holds_the_share_and_narrows_with_items() -> None:
    chance = random.Random(0)

    def interval(items: int) -> tuple[float, float, float]:
        gold = [[chance.choice("ab")] for _ in range(items)]
        swap = {"a": "b", "b": "a"}
        reference, model = (
            [[[g if chance.random() < right else swap[g]] for (g,) in gold] for _ in range(2)] for right in (0.9, 0.7)
        )
        share = retained([accuracy(gold, one) for one in model], [accuracy(gold, one) for one in reference])
        return (*retained_interval(accuracy, gold, model, reference, resamples=80), share)

    few_low, few_high, few = interval(40)
    low, high, share = interval(640)
    assert few_low < few < few_high and low < share < high
    assert high - low < 0.5 * (few_high - few_low)  # in theory a quarter


def test_a_model_against_itself_has_no_spread() -> None:
    predictions = [SKLEARN_PREDICTED, SKLEARN_GOLD]
    assert retained_interval(weighted_f1, SKLEARN_GOLD, predictions, predictions, resamples=20) == (1.0, 1.0)


def test_a_reference_that_is_always_wrong_leaves_no_share() -> None:
    low, high = retained_interval(accuracy, [["a"]] * 3, [[["a"]] * 3], [[["b"]] * 3], resamples=5)
    assert math.isnan(low) and math.isnan(high)


def test_the_most_frequent_label_alone() -> None:
    train, gold = [["a"], ["b"], ["b"]], [["b"], ["a"], ["a"], ["a"]]
    assert most_frequent_alone(accuracy, train, gold) == ("b", 0.25)
    tagged = [["O", "O", "B-PER"], ["O", "B-LOC"]]
    assert most_frequent_alone(entity_f1, tagged, tagged) == ("O", 0.0)
