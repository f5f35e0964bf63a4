"""Accuracy, loss, macro F1, accuracy by class and calibration against scikit-learn and loops."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss, recall_score

from fedsim.metrics.accuracy import Accuracy
from fedsim.metrics.calibration import Calibration
from fedsim.metrics.class_accuracy import ClassAccuracy
from fedsim.metrics.loss import Loss
from fedsim.metrics.macro_f1 import MacroF1
from tests.metrics.samples import one, predictions, said, value


def test_on_a_tie_the_lowest_class_counts() -> None:
    given = one(np.array([[2.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0]]), [0, 0, 1, 1])
    assert value(Accuracy(), given, "accuracy") == 0.5


def test_the_loss_is_scikit_learns() -> None:
    given = predictions((40,))
    expected = log_loss(given.labels, torch.softmax(given.logits.double(), 1).numpy(), labels=range(4))
    assert value(Loss(), given, "loss") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [3, 50])
def test_macro_f1_is_scikit_learns(seed: int, size: int) -> None:
    given = predictions((size,), num_classes=5, seed=seed)  # three examples: most classes are absent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = f1_score(given.labels, given.predicted, average="macro")
    assert value(MacroF1(), given, "macro_f1") == pytest.approx(expected, rel=1e-12)


def test_macro_f1_by_hand() -> None:
    # Class 0: precision 2/3, recall 1. Class 1: 0 of 1 found. Class 2 does not occur, class 3 is only predicted.
    given = one(said([0, 0, 0, 3], 4), [0, 0, 1, 0])
    f1_of_0 = 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    assert value(MacroF1(), given, "macro_f1") == pytest.approx((f1_of_0 + 0 + 0) / 3)


def test_accuracy_by_class_is_recall() -> None:
    given = predictions((50,))
    expected = recall_score(given.labels, given.predicted, average=None)
    assert value(ClassAccuracy(), given, "class_accuracy").tolist() == pytest.approx(expected.tolist())
    partial = value(ClassAccuracy(), one(said([0, 1, 1], 3), [0, 0, 1]), "class_accuracy")
    assert partial[:2].tolist() == [0.5, 1.0]
    assert math.isnan(partial[2])


def slow_error(given, bins):
    """Expected calibration error, example by example."""
    kept = [[] for _ in range(bins)]
    for logits, target in zip(given.logits.double(), given.labels, strict=True):
        p = torch.softmax(logits, 0).tolist()
        confidence = max(p)
        place = next(b for b in range(bins) if confidence <= (b + 1) / bins + 1e-15)
        kept[place].append((confidence, p.index(confidence) == target))
    total = 0.0
    for members in filter(None, kept):
        accuracy = sum(right for _, right in members) / len(members)
        confidence = sum(c for c, _ in members) / len(members)
        total += len(members) / len(given.labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_is_that_of_a_loop(bins: int) -> None:
    given = predictions((200,), num_classes=3)
    assert value(Calibration(bins=bins), given, "calibration") == pytest.approx(slow_error(given, bins), rel=1e-9)
    assert Calibration().bins == 15


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not() -> None:
    logits = 1000 * np.eye(2)[[0, 1]]
    assert value(Calibration(), one(logits, [0, 1]), "calibration") == 0.0
    assert value(Calibration(), one(logits, [1, 0]), "calibration") == 1.0


def test_a_coin_that_knows_it_is_one_is_calibrated() -> None:
    assert value(Calibration(), one(np.zeros((4, 2)), [0, 1, 0, 1]), "calibration") == 0.0


def test_the_mean_of_the_clients_errors_is_not_the_error_of_all() -> None:
    """A confidence of 0.75 that is right always at one client and half of the time at the other is just right."""
    logit = math.log(3.0)
    given = one(np.tile([logit, 0.0], (8, 1)), [0, 0, 0, 0, 0, 0, 1, 1])
    metric = Calibration()
    halves = [one(given.logits[a:b], given.labels[a:b]) for a, b in ((0, 4), (4, 8))]
    assert [float(value(metric, half, "calibration")) for half in halves] == pytest.approx([0.25, 0.25])
    assert value(metric, given, "calibration") == pytest.approx(0.0, abs=1e-7)
