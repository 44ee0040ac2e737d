"""Score predictions with scikit-learn and seqeval, as the field does, and compare models.

Gold labels and predictions have the same form for all tasks, a sequence of labels per item: one for a classified text,
one per word for a tagged sentence. Every score is a pure function of the two, in 0..1.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Labels = Sequence[Sequence[str]]  # [items][1] for classification, [items][words] for tagging
Score = Callable[[Labels, Labels], float]


def weighted_f1(gold: Labels, predicted: Labels) -> float:
    """Return the mean F1 of the classes, weighted by gold frequency; a class that is never predicted has F1 0.

    Raises ValueError for items of unequal length.
    """
    from sklearn.metrics import f1_score  # here: slow to import, and fine-tuning does not need it

    return float(f1_score(_flat(gold), _flat(predicted), average="weighted", zero_division=0.0))


def accuracy(gold: Labels, predicted: Labels) -> float:
    """Return the share of correct labels. Raises ValueError for items of unequal length."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(_flat(gold), _flat(predicted)))


def entity_f1(gold: Labels, predicted: Labels) -> float:
    """Return micro-averaged F1 over BIO entities, correct if type, start and end match; 0 without any entity.

    Raises ValueError for sentences of unequal length.
    """
    from seqeval.metrics import f1_score

    return float(f1_score([list(item) for item in gold], [list(item) for item in predicted], zero_division=0))


def _flat(labels: Labels) -> list[str]:
    return list(chain.from_iterable(labels))


def most_frequent_alone(score: Score, train: Labels, gold: Labels) -> tuple[str, float]:
    """Return the most frequent label of the training items, and the score of predicting it everywhere."""
    label = Counter(_flat(train)).most_common(1)[0][0]
    return label, score(gold, [[label] * len(item) for item in gold])


def retained(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Return the mean score as a share of the reference's mean score; NaN if the latter is 0."""
    return float(np.mean(scores) / np.mean(reference)) if np.mean(reference) else float("nan")


def retained_interval(
    score: Score,
    gold: Labels,
    predicted: Sequence[Labels],
    reference: Sequence[Labels],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return (low, high) of a percentile bootstrap of the retained share over test items, the same for both models.

    `predicted` and `reference` hold the predictions of each seed. Seeds are not resampled: the interval covers the
    choice of test items, not that of seeds. NaN if the reference scores 0 in every resample.
    """
    generator = np.random.default_rng(seed)
    shares = [
        retained(_resampled(score, gold, predicted, drawn), _resampled(score, gold, reference, drawn))
        for drawn in generator.integers(0, len(gold), (resamples, len(gold)))
    ]
    known = [share for share in shares if not np.isnan(share)]
    if not known:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(score: Score, gold: Labels, predictions: Sequence[Labels], drawn: NDArray[np.int64]) -> list[float]:
    """Return the score of each seed's predictions on the items `drawn` [items]."""
    chosen = [gold[i] for i in drawn]
    return [score(chosen, [one[i] for i in drawn]) for one in predictions]
