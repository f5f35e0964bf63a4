"""What every metric promises: sums that add up over examples and clients, and values that say so."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fedsim.metrics import ALWAYS, Metric, Predictions, Value, clashes, given, measured, sums_by
from fedsim.metrics.calibration import Calibration
from fedsim.metrics.cmi import Cmi
from tests.metrics.samples import every_metric, predictions, rows

METRICS = every_metric()


@pytest.fixture(params=METRICS)
def metric(request: pytest.FixtureRequest) -> Metric:
    return METRICS[request.param]


def test_a_client_s_sums_are_its_own_to_the_bit(metric: Metric) -> None:
    many = predictions()
    sums = metric.sums(many)
    assert sums.dtype == np.float64
    assert sums.ndim == 2
    for client in range(many.num_clients):
        alone = rows(many, many.owners == client, merge=True)
        np.testing.assert_array_equal(sums[client], metric.sums(alone)[0])


def test_sums_of_the_union_are_the_sum_of_the_sums(metric: Metric) -> None:
    many = predictions()
    everyone = rows(many, np.full(len(many.owners), True), merge=True)
    np.testing.assert_allclose(metric.sums(many).sum(axis=0), metric.sums(everyone)[0], rtol=1e-12)
    pooled = metric.values(metric.sums(many).sum(axis=0, keepdims=True), many.task)
    direct = metric.values(metric.sums(everyone), many.task)
    for name in metric.gives:
        np.testing.assert_allclose(pooled[name], direct[name], rtol=1e-10)


def test_values_are_those_it_says_it_gives_in_shape_and_order(metric: Metric) -> None:
    many = predictions()
    found = metric.values(metric.sums(many), many.task)
    assert list(found) == list(metric.gives)
    for name, value in metric.gives.items():
        assert found[name].ndim == (2 if value.vector else 1)
        assert len(found[name]) == many.num_clients
        assert value.definition.endswith(".")
        assert value.better in ("higher", "lower", "neither")
        # The spread over clients is defined for values that are not negative.
        assert not (found[name] < 0).any()


def test_a_client_without_examples_has_no_value(metric: Metric) -> None:
    many = predictions()
    sums = metric.sums(many)
    assert not sums[1].any()
    for values in metric.values(sums, many.task).values():
        assert np.isnan(values[1]).all()
        assert not np.isnan(values[4]).any()


def test_the_values_of_a_client_do_not_depend_on_who_else_is_asked(metric: Metric) -> None:
    many = predictions()
    sums = metric.sums(many)
    together = metric.values(sums, many.task)
    for client in range(many.num_clients):
        alone = metric.values(sums[client : client + 1], many.task)
        for name in metric.gives:
            np.testing.assert_allclose(together[name][client], alone[name][0], rtol=1e-12)


def test_logits_that_are_not_finite_raise_nothing(metric: Metric) -> None:
    """A model that has diverged is reported by its loss, not by an exception of some metric."""
    broken = predictions(sizes=(3, 3))
    broken.logits[1] = float("nan")
    broken.logits[2] = float("inf")
    metric.values(metric.sums(broken), broken.task)


def test_every_evaluation_has_accuracy_and_loss_first() -> None:
    assert list(measured([Cmi()])) == [*ALWAYS, "cmi"]
    assert list(given(measured([Cmi()]).values())) == ["accuracy", "loss", "cmi", "gamma", "gamma_kl", "ncmi"]


def test_the_page_of_metrics_has_every_value() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert f"| `{name}` |" in page
        for value, meaning in metric.gives.items():
            shape = {"class_accuracy": " [C]", "group_accuracy": " [G]"}.get(value, "")
            assert f"| `{value}`{shape} | {meaning.better} |" in page


def test_names_of_values_are_unique() -> None:
    asked = [metric for name, metric in METRICS.items() if name not in ALWAYS]
    assert list(clashes(asked)) == []
    assert len(given(METRICS.values())) == sum(len(metric.gives) for metric in METRICS.values())


class Other(Metric):
    gives: ClassVar[dict[str, Value]] = {"cmi": Value("Another one.", "lower")}

    def sums(self, predictions: Predictions):  # type: ignore[no-untyped-def]
        return np.zeros((predictions.num_clients, 1))

    def values(self, sums, task):  # type: ignore[no-untyped-def]
        del task
        return {"cmi": sums[:, 0]}


def test_metrics_that_share_a_column_are_refused() -> None:
    assert list(clashes([Cmi(), Calibration(), Cmi()])) == ["cmi is there twice, keep one of them"]
    assert list(clashes([Cmi(), Other()])) == [
        'tests.metrics.test_contract:Other gives "cmi" as does cmi, keep one of them'
    ]
    assert list(clashes([METRICS["loss"]])) == ["loss is always measured, leave it out"]


def test_sums_by_key_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 9, 200), rng.standard_normal((200, 3))
    keys[keys == 4] = 5
    found = sums_by(keys, values, 10)
    for key in range(10):
        np.testing.assert_allclose(found[key], values[keys == key].sum(axis=0), rtol=1e-12, atol=1e-15)
    flat = values[:, 0].copy()
    assert sums_by(keys, flat, 10).tolist() == [flat[keys == key].sum() for key in range(10)]  # to the bit
    assert sums_by(keys[:0], flat[:0], 2).tolist() == [0.0, 0.0]
