"""Metrics by group against the counts they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsim.metrics.groups import Groups
from tests.metrics.samples import one, predictions, said, value

# (group, class, prediction) of two groups with two classes
ROWS = [
    *[(0, 1, 1)] * 3, (0, 1, 0), *[(0, 0, 0)] * 4, *[(0, 0, 1)] * 2,  # 10 of group 0: 7 right, 5 called 1
    *[(1, 1, 1)] * 1, (1, 1, 0), (1, 0, 0), (1, 0, 1),  # 4 of group 1: 2 right, 2 called 1
]  # fmt: skip


def found(rows, num_groups=2, num_classes=2):
    group, label, prediction = zip(*rows, strict=True)
    given = one(said(prediction, num_classes), label, group, num_groups)
    return {name: value(Groups(), given, name) for name in Groups.gives}


def test_two_groups_and_two_classes_by_hand() -> None:
    values = found(ROWS)
    assert values["group_accuracy"].tolist() == [0.7, 0.5]
    assert values["accuracy_gap"] == pytest.approx(0.2)
    assert values["demographic_parity"] == pytest.approx(abs(5 / 10 - 2 / 4))
    true_positive, false_positive = abs(3 / 4 - 1 / 2), abs(2 / 6 - 1 / 2)
    assert values["equalised_odds"] == pytest.approx(max(true_positive, false_positive))
    assert values["macro_std"] == pytest.approx(np.std([0.7, 0.5]))


def test_unknown_groups_and_empty_ones_are_left_out() -> None:
    more = [*ROWS, *[(-1, 0, 1)] * 50]
    values, expected = found(more, num_groups=3), found(ROWS)
    assert math.isnan(values["group_accuracy"][2])
    assert values["group_accuracy"][:2].tolist() == expected["group_accuracy"].tolist()
    for name in set(Groups.gives) - {"group_accuracy"}:
        assert values[name] == expected[name]


def test_a_single_group_has_an_accuracy_and_no_difference() -> None:
    values = found([row for row in ROWS if row[0] == 0])
    assert values["group_accuracy"][0] == 0.7
    for name in set(Groups.gives) - {"group_accuracy"}:
        assert math.isnan(values[name])


def test_a_class_that_only_one_group_has_says_nothing_about_odds() -> None:
    values = found([(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)])
    assert values["equalised_odds"] == 0.5  # of class 0; nobody of group 1 is of class 1


def test_with_more_classes_it_is_the_largest_difference() -> None:
    many = predictions((300,), num_classes=4)
    assert many.groups is not None
    parity, odds = [], []
    for c in range(4):
        rates = [np.mean(many.predicted[many.groups == g] == c) for g in range(3)]
        parity.append(max(rates) - min(rates))
        for y in range(4):
            rates = [np.mean(many.predicted[(many.groups == g) & (many.labels == y)] == c) for g in range(3)]
            odds.append(max(rates) - min(rates))
    assert value(Groups(), many, "demographic_parity") == pytest.approx(max(parity), rel=1e-12)
    assert value(Groups(), many, "equalised_odds") == pytest.approx(max(odds), rel=1e-12)


def test_examples_without_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="the examples have no groups"):
        Groups().sums(one(said([0], 2), [0]))
