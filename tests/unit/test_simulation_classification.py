"""Scores of two classes: against scikit-learn, undefined ones, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from services.simulation.errors import InvalidInput
from services.simulation.scores.classification import ClassificationScores, classification_scores
from services.simulation.scores.simulation_scores import Score, UndefinedReason

SINGLE_CLASS = UndefinedReason.UNDEFINED_SINGLE_CLASS
NO_POSITIVE_PREDICTIONS = UndefinedReason.UNDEFINED_NO_POSITIVE_PREDICTIONS


def columns(scores: ClassificationScores) -> dict[str, Score]:
    return {name: getattr(scores, name) for name in scores.__slots__}


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, 38), [0, 1])
    # Rounded, so that there are ties, some of them at the threshold.
    likely = np.round(np.clip(0.3 * labels + 0.7 * rng.random(40), 0, 1), 1)
    ours = columns(classification_scores(labels, likely, range(40), seed))
    predicted = likely >= 0.5
    theirs = {
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision_score(labels, predicted),
        "recall": recall_score(labels, predicted),
        "f1": f1_score(labels, predicted),
        "roc_auc": roc_auc_score(labels, likely),
    }
    for name, score in ours.items():
        assert score.value == pytest.approx(theirs[name], abs=1e-12), name
        assert score.value is not None
        assert score.interval is not None
        assert score.interval.low <= score.value <= score.interval.high


@pytest.mark.parametrize(
    ("labels", "likely", "undefined"),
    [
        ([1, 1], [0.9, 0.2], {"balanced_accuracy", "roc_auc"}),
        ([0, 0], [0.9, 0.2], {"balanced_accuracy", "recall", "roc_auc"}),
        ([0, 0], [0.1, 0.2], {"balanced_accuracy", "precision", "recall", "f1", "roc_auc"}),
        ([0, 1], [0.4, 0.4], {"precision"}),
    ],
)
def test_one_class_leaves_scores_undefined(
    labels: list[int], likely: list[float], undefined: set[str]
) -> None:
    for name, score in columns(classification_scores(labels, likely, ["a", "b"])).items():
        reason = NO_POSITIVE_PREDICTIONS if name == "precision" else SINGLE_CLASS
        assert score.reason == (reason if name in undefined else None), name
        assert (score.value is None) == (name in undefined)


def test_no_judgements_have_no_scores() -> None:
    for score in columns(classification_scores([], [], [])).values():
        assert score == Score(None, UndefinedReason.UNDEFINED_NO_PREDICTIONS)


def test_ten_right_answers_are_no_certainty() -> None:
    scores = classification_scores([1] * 5 + [0] * 5, [0.9] * 5 + [0.1] * 5, range(10), 7)
    for score in (scores.balanced_accuracy, scores.roc_auc):
        assert score.value == 1.0
        assert score.interval is not None
        assert 0.3 < score.interval.low < 0.9
        assert score.interval.high == 1.0


def test_judgements_of_a_sequence_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 60)
    hard = np.repeat(rng.random(12) < 0.5, 10)
    likely = np.where(hard, 1 - labels, labels) * 0.8 + 0.1
    alone = classification_scores(labels, likely, range(120), 1).balanced_accuracy
    together = classification_scores(
        labels, likely, [i // 10 for i in range(120)], 1
    ).balanced_accuracy
    assert alone.value == together.value
    assert alone.interval is not None
    assert together.interval is not None
    width = together.interval.high - together.interval.low
    assert width > 2 * (alone.interval.high - alone.interval.low)


def test_intervals_follow_the_seed() -> None:
    rng = np.random.default_rng(3)
    labels, likely = rng.integers(0, 2, 30), rng.random(30)
    first, again, other = (
        classification_scores(labels, likely, range(30), seed) for seed in (5, 5, 6)
    )
    assert first == again != other


def test_one_sequence_has_no_interval() -> None:
    scores = classification_scores([0, 1, 1], [0.1, 0.9, 0.3], ["only"] * 3)
    assert scores.roc_auc == Score(1.0)


@pytest.mark.parametrize(
    ("labels", "likely", "groups", "field"),
    [
        ([0, 1], [0.5], [0, 1], "probabilities"),
        ([0, 1], [0.5, 0.5], [0], "groups"),
        ([0, 2], [0.5, 0.5], [0, 1], "labels[1]"),
        ([0, math.nan], [0.5, 0.5], [0, 1], "labels[1]"),
        ([0, 1], [0.5, math.nan], [0, 1], "probabilities[1]"),
        ([0, 1], [-0.1, 0.5], [0, 1], "probabilities[0]"),
        ([0, 1], [0.5, 1.5], [0, 1], "probabilities[1]"),
        ([0, "x"], [0.5, 0.5], [0, 1], "labels"),
    ],
)
def test_bad_judgements_are_named(
    labels: list[float], likely: list[float], groups: list[int], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        classification_scores(labels, likely, groups)
    assert caught.value.field == field
