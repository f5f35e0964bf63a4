"""Many clients from few examples: who owns what, how skewed, and that no test example is trained on."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim.errors import DataError
from fedsim.partitions.resampled import Resampled

LABELS = np.sort(np.random.default_rng(0).choice(5, 600, p=[0.1, 0.15, 0.2, 0.25, 0.3]))


def tables(scheme: Resampled, labels: NDArray[np.int64] = LABELS, seed: int = 0) -> list[NDArray[np.int64]]:
    """Train and test examples by client, [K, m] and [K, t]."""
    return [side.rows.reshape(len(side), -1).astype(np.int64) for side in scheme.sides(labels, seed)]


def test_nobody_is_tested_on_what_anybody_trains_on() -> None:
    train, test = tables(Resampled(num_clients=300, examples=50))
    assert train.shape == (300, 40)
    assert test.shape == (300, 10)
    assert not set(train.ravel()) & set(test.ravel())
    # 12,000 draws of 480 and 3,000 of 120: nobody is left out, so the division is that of `test_fraction`.
    assert (len(set(train.ravel())), len(set(test.ravel()))) == (480, 120)
    shares = [np.bincount(LABELS[np.unique(side)]) / np.bincount(LABELS) for side in (train, test)]
    np.testing.assert_allclose(shares, [[0.8] * 5, [0.2] * 5], atol=0.01)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 12),
    examples=st.integers(2, 30),
    alpha=st.sampled_from([None, 1e-4, 0.1, 1.0, 100.0]),
    num_clients=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_clients_have_so_many_different_examples_of_any_data(
    sizes: list[int], examples: int, alpha: float | None, num_clients: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    scheme = Resampled(num_clients=num_clients, examples=examples, alpha=alpha)
    if 5 * examples > 4 * len(labels) - 5 * len(sizes):  # the parts may be too small for a client
        with suppress(DataError):
            tables(scheme, labels, seed)
        return
    train, test = tables(scheme, labels, seed)
    assert train.shape[1] + test.shape[1] == examples
    for side in (train, test):
        assert len(side) == num_clients
        assert (np.diff(side, axis=1) > 0).all()  # ascending, so different
        assert side.min() >= 0
        assert side.max() < len(labels)
    assert not set(train.ravel()) & set(test.ravel())


def test_clients_overlap_as_chance_has_it() -> None:
    train, _ = tables(Resampled(num_clients=400, examples=50))
    drawn = np.bincount(train.ravel(), minlength=600)
    of_part = drawn[np.unique(train)]
    # Every example of the train part is drawn with probability 40 / 480 by each of 400 clients.
    mean, spread = 400 * 40 / 480, np.sqrt(400 * (40 / 480) * (1 - 40 / 480))
    assert of_part.mean() == pytest.approx(mean)
    assert of_part.std() == pytest.approx(spread, rel=0.15)


def test_alpha_is_the_law_of_the_mixes() -> None:
    """Shares of Dirichlet(a p) have mean p and variance p (1 - p) / (a + 1); counts add the binomial's."""
    labels = np.repeat(np.arange(4), [1000, 2000, 3000, 4000])
    p = np.array([0.1, 0.2, 0.3, 0.4])
    for alpha in (0.5, 5.0):
        train, test = tables(Resampled(num_clients=4000, examples=50, alpha=alpha), labels)
        for side in (train, test):
            shares = np.stack([(labels[side] == label).mean(axis=1) for label in range(4)], axis=1)
            variance = p * (1 - p) / (alpha + 1)
            variance = variance + (p * (1 - p) - variance) / side.shape[1]
            np.testing.assert_allclose(shares.mean(axis=0), p, atol=0.02)
            np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.1)


def test_a_client_is_tested_on_the_mix_it_trains_on() -> None:
    train, test = tables(Resampled(num_clients=200, examples=50, alpha=0.2))
    of_train, of_test = (np.stack([(LABELS[side] == c).mean(axis=1) for c in range(5)]) for side in (train, test))
    assert np.corrcoef(of_train.ravel(), of_test.ravel())[0, 1] > 0.85


def test_clients_are_the_same_however_many_follow() -> None:
    few, many = (tables(Resampled(num_clients=count, alpha=0.3)) for count in (5, 2100))
    for side, more in zip(few, many, strict=True):
        np.testing.assert_array_equal(side, more[:5])
    assert len(np.unique(many[0], axis=0)) == 2100


def test_a_used_up_class_is_made_up_for() -> None:
    labels = np.repeat([0, 1], [990, 10])
    train, test = tables(Resampled(num_clients=1000, examples=40, alpha=0.01, test_fraction=0.5), labels)
    mine = (labels[train] == 1).sum(axis=1)
    assert mine.max() == 5  # half of the ten, though a mix may ask for all twenty
    assert train.shape == test.shape == (1000, 20)


def test_too_many_examples_are_refused() -> None:
    scheme = Resampled(num_clients=5, examples=601)
    message = r"partition\.examples: a client of 601 takes 481 of the train part, which has 480 of 600"
    with pytest.raises(DataError, match=message):
        scheme.sides(LABELS, 0)
