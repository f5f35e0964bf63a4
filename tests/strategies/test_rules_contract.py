"""What every aggregation rule promises, whatever it computes; rules are found by walking their folder."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedsim import checkpoint, plugins
from strategies.rules import AnyRule, Cohort, Direction, MemoryRule, Rule

RULES = plugins.names("strategies.rules")
ELSEWHERE = {"client.lr": 0.1, "client.momentum": 0.0}  # what a scenario would hand to options that a rule inherits
CLIENTS = (31, 4, 27, 8)
COORDINATEWISE = ("fedadam", "fedyogi", "fedadagrad")  # each coordinate has a step length of its own


def build(name: str, **options: Any) -> AnyRule:
    rule = plugins.find("strategies.rules", name, AnyRule)
    return rule(**{option: ELSEWHERE[key] for option, key in rule.inherits.items()}, **options)


def direction_of(rule: AnyRule, cohort: Cohort) -> Direction:
    """The direction of a first round."""
    if isinstance(rule, MemoryRule):
        return rule.direction(cohort, rule.initial_memory())[0]
    assert isinstance(rule, Rule)
    return rule.direction(cohort)


def cohort_for(rule: AnyRule, updates: Tensor | None = None) -> Cohort:
    """Four clients (or one per row) with distinct losses, weights and reports."""
    rows = torch.randn(4, 12, generator=torch.Generator().manual_seed(1)).double() + 0.3
    rows = rows if updates is None else updates
    count = len(rows)
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    reports = dict.fromkeys(rule.needs, 0.4 + 0.2 * numbers)
    cohort = Cohort.of(rows, 0.5 + 0.25 * numbers, numbers / numbers.sum(), **reports)
    return replace(cohort, clients=CLIENTS[:count])


def spoiled(values: Tensor, place: int | tuple[int, int], bad: float) -> Tensor:
    copied = values.clone()
    copied[place] = bad
    return copied


def permuted(cohort: Cohort, order: list[int]) -> Cohort:
    return replace(
        cohort,
        updates=cohort.updates[order],
        losses=cohort.losses[order],
        weights=cohort.weights[order],
        clients=tuple(cohort.clients[k] for k in order),
        reports={name: values[order] for name, values in cohort.reports.items()},
    )


def test_the_folder_holds_the_rules_that_came_with_the_platform() -> None:
    fair = "adafed dqnfed qfedavg afl term mgda fedmgda_plus fedfv fedmdfg fedlf propfair gifair drfl ditto"
    general = "fedavg fedprox scaffold fednova feddyn fedadam fedyogi fedadagrad"
    assert set(f"{fair} {general}".split()) <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_rule_is_final_frozen_and_refuses_unknown_options(name: str) -> None:
    rule = build(name)
    assert getattr(type(rule), "__final__", False)
    assert rule.plugin_name == name
    assert rule.default_server_lr > 0
    with pytest.raises(ValidationError):
        type(rule)(no_such_option=1)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direction_has_the_shape_and_dtype_of_an_update(name: str, dtype: torch.dtype) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    direction = direction_of(rule, replace(cohort, updates=cohort.updates.to(dtype)))
    assert direction.vector.shape == (12,)
    assert direction.vector.dtype == dtype
    assert direction.vector.isfinite().all()
    assert direction.vector.any()


UNWEIGHTED = {"fedadagrad", "fedadam", "feddyn", "fedyogi"}
"""Rules whose direction is no weighted sum of the updates."""


@pytest.mark.parametrize("name", RULES)
def test_weights_reproduce_the_vector(name: str) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    direction = direction_of(rule, cohort)
    assert (direction.weights is None) == (name in UNWEIGHTED)
    if direction.weights is None:
        return
    assert direction.weights.shape == (4,)
    assert direction.weights.dtype == torch.float64
    torch.testing.assert_close(direction.vector, direction.weights @ cohort.updates, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_info_is_numbers_and_words(name: str) -> None:
    rule = build(name)
    info = direction_of(rule, cohort_for(rule)).info
    assert all(type(value) in {float, int, str} for value in info.values())


@pytest.mark.parametrize("name", RULES)
def test_direction_is_the_same_in_every_order_of_clients(name: str) -> None:
    rule = build(name)
    cohort, order = cohort_for(rule), [2, 0, 3, 1]
    there, here = direction_of(rule, cohort), direction_of(rule, permuted(cohort, order))
    torch.testing.assert_close(here.vector, there.vector, rtol=1e-9, atol=1e-11)
    if there.weights is not None and here.weights is not None:
        torch.testing.assert_close(here.weights, there.weights[order], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", RULES)
def test_same_input_gives_same_bits_and_is_left_alone(name: str) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    before = copy.deepcopy(cohort)
    first, second = direction_of(rule, cohort), direction_of(rule, cohort)
    assert torch.equal(first.vector, second.vector)
    assert torch.equal(cohort.updates, before.updates)
    assert torch.equal(cohort.losses, before.losses)
    assert torch.equal(cohort.weights, before.weights)
    assert all(torch.equal(cohort.reports[report], before.reports[report]) for report in rule.needs)


@pytest.mark.parametrize("name", RULES)
def test_float32_updates_give_nearly_the_float64_direction(name: str) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    single = direction_of(rule, replace(cohort, updates=cohort.updates.float())).vector.double()
    torch.testing.assert_close(single, direction_of(rule, cohort).vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 4])
def test_agreeing_clients_move_along_their_common_update(name: str, count: int) -> None:
    """update = old - new and theta <- theta - lr * vector: a negative factor would be gradient ascent."""
    rule = build(name)
    update = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    cohort = cohort_for(rule, update.repeat(count, 1))
    same = {report: torch.full((count,), 0.7, dtype=torch.float64) for report in rule.needs}
    losses = torch.full((count,), 1.3, dtype=torch.float64)
    vector = direction_of(rule, replace(cohort, losses=losses, reports=same)).vector
    assert bool((vector * update > 0).all())
    if name in COORDINATEWISE:
        return
    factor = float(vector @ update / (update @ update))
    torch.testing.assert_close(vector, factor * update, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_scaling_every_update_leaves_a_weighted_sum_where_it_points(name: str, scale: float) -> None:
    """No tolerance is absolute: gradients of 1e-5 are as good as those of 1."""
    rule = build(name)
    cohort = cohort_for(rule)
    there = direction_of(rule, cohort)
    here = direction_of(rule, replace(cohort, updates=scale * cohort.updates))
    assert here.vector.isfinite().all()
    assert here.vector.any()
    if there.weights is not None:
        cosine = float(here.vector @ there.vector / here.vector.norm() / there.vector.norm())
        assert cosine == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_a_client_that_is_there_twice_does_no_harm(name: str) -> None:
    """Rank-deficient Gram matrices: twice the same update, with equal and with unequal losses."""
    rule = build(name)
    cohort = cohort_for(rule)
    twice = replace(cohort, updates=cohort.updates[[0, 0, 2, 3]])
    even = torch.full((4,), 0.9, dtype=torch.float64)
    equal = replace(twice, losses=even, reports=dict.fromkeys(rule.needs, even))
    for these in (twice, equal):
        vector = direction_of(rule, these).vector
        assert vector.isfinite().all()
        torch.testing.assert_close(
            direction_of(rule, permuted(these, [3, 1, 0, 2])).vector, vector, rtol=1e-6, atol=1e-8
        )
    assert direction_of(rule, equal).vector.any()


@pytest.mark.parametrize("name", RULES)
def test_clients_that_all_stand_still_give_a_zero_direction(name: str) -> None:
    rule = build(name)
    direction = direction_of(rule, cohort_for(rule, torch.zeros(3, 5, dtype=torch.float64)))
    assert torch.equal(direction.vector, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_update_is_refused_by_client(name: str, bad: float) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    with pytest.raises(ValueError, match=r"\b27\b"):
        direction_of(rule, replace(cohort, updates=spoiled(cohort.updates, (2, 5), bad)))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_is_refused_by_client(name: str, bad: float) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    with pytest.raises(ValueError, match=r"\b31\b"):
        direction_of(rule, replace(cohort, losses=spoiled(cohort.losses, 0, bad)))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_report_is_refused_by_client(name: str, bad: float) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    for report, values in cohort.reports.items():
        with pytest.raises(ValueError, match=r"\b8\b"):
            direction_of(rule, replace(cohort, reports={**cohort.reports, report: spoiled(values, 3, bad)}))


@pytest.mark.parametrize("name", RULES)
def test_wrong_shapes_are_refused(name: str) -> None:
    rule = build(name)
    cohort = cohort_for(rule)
    wrong = [
        {"updates": cohort.updates[0]},
        {"updates": cohort.updates[:, :, None]},
        {"losses": cohort.losses[:3]},
        {"losses": cohort.losses[:, None]},
        {"weights": cohort.weights[:3]},
        *({"reports": {**cohort.reports, report: cohort.losses[:3]}} for report in rule.needs),
    ]
    for change in wrong:
        with pytest.raises(ValueError):
            direction_of(rule, replace(cohort, **change))


REMEMBERING = {  # with options that do remember
    name: options
    for name in RULES
    if issubclass(plugins.find("strategies.rules", name, AnyRule), MemoryRule)
    for options in ({"fedfv": {"tau": 3, "external": "absent"}, "dqnfed": {"row": "final_gradient"}}.get(name, {}),)
}


def remembering(name: str) -> MemoryRule:
    return cast(MemoryRule, build(name, **REMEMBERING[name]))


def leaves(memory: Any) -> int:
    """Numbers and tensors in a memory."""
    if isinstance(memory, dict):
        return sum(leaves(item) for item in memory.values())
    return sum(leaves(item) for item in memory) if isinstance(memory, list) else 1


def rounds(rule: MemoryRule) -> list[Cohort]:
    """Three rounds of a federation of six clients in which some come back, in other places."""
    generator = torch.Generator().manual_seed(7)
    cohorts = []
    for number, clients in enumerate([(31, 4, 27), (8, 31, 2), (27, 8, 4)], start=1):
        rows = torch.randn(3, 12, generator=generator, dtype=torch.float64) + 0.3
        cohort = replace(cohort_for(rule, rows), clients=clients, server_round=number, num_clients=6)
        spread = 0.2 + torch.rand(3, generator=generator, dtype=torch.float64)
        cohorts.append(replace(cohort, losses=spread))
    return cohorts


@pytest.mark.parametrize("name", [name for name in RULES if not build(name).facts.secure])
def test_what_does_not_work_under_secure_aggregation_looks_at_inner_products(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = build(name)
    asked, gram, layer_grams = [], Cohort.gram, Cohort.layer_grams
    monkeypatch.setattr(Cohort, "gram", lambda *rows: asked.append("gram") or gram(*rows))
    monkeypatch.setattr(Cohort, "layer_grams", lambda *rows: asked.append("layer_grams") or layer_grams(*rows))
    direction_of(rule, cohort_for(rule))
    assert asked, f"{name} looks at no inner product: is it not secure?"


@pytest.mark.parametrize("name", [name for name in RULES if build(name).facts.secure])
def test_what_works_under_secure_aggregation_sees_sums_only(name: str) -> None:
    """Other updates with the same sums and the same reported numbers give the same weights, or the same vector."""
    rule = build(name)
    cohort = cohort_for(rule)
    cohort = replace(cohort, reports={**cohort.reports, "update-norm": cohort.updates.norm(dim=1)})
    even = torch.full((4,), 0.25, dtype=torch.float64)
    cohort = replace(cohort, weights=even, reports={**cohort.reports, **dict.fromkeys(rule.needs, even)})
    change = torch.randn(4, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    other = replace(cohort, updates=cohort.updates + change - change.mean(dim=0))
    there, here = direction_of(rule, cohort), direction_of(rule, other)
    if there.weights is None:
        torch.testing.assert_close(here.vector, there.vector, rtol=1e-9, atol=1e-11)
    else:
        assert here.weights is not None
        torch.testing.assert_close(here.weights, there.weights, rtol=1e-12, atol=0)


def test_two_clients_of_one_number_are_refused() -> None:
    cohort = cohort_for(build("fedavg"))
    with pytest.raises(ValueError, match="client 27 twice"):
        replace(cohort, clients=(31, 27, 27, 8))


@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_survives_a_checkpoint_and_is_not_changed_in_place(name: str, tmp_path: Path) -> None:
    rule = remembering(name)
    memory = rule.initial_memory()
    for cohort in rounds(rule):
        checkpoint.save(tmp_path / "memory", memory)
        before = copy.deepcopy(memory)
        through, there = rule.direction(cohort, memory)
        again, here = rule.direction(cohort, memory)
        thawed, _ = rule.direction(cohort, checkpoint.load(tmp_path / "memory"))
        assert torch.equal(through.vector, again.vector)
        assert torch.equal(through.vector, thawed.vector)
        torch.testing.assert_close(memory, before, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(there, here, rtol=0, atol=0, equal_nan=True)
        memory = there
    assert leaves(memory) > 0


@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_belongs_to_clients_and_not_to_places(name: str) -> None:
    """Every round's clients in another order give the same directions to the end."""
    rule = remembering(name)
    memory, shuffled = rule.initial_memory(), rule.initial_memory()
    for cohort, order in zip(rounds(rule), ([1, 2, 0], [2, 1, 0], [0, 2, 1]), strict=True):
        there, memory = rule.direction(cohort, memory)
        here, shuffled = rule.direction(permuted(cohort, order), shuffled)
        torch.testing.assert_close(here.vector, there.vector, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_does_not_hold_on_to_the_round_s_updates(name: str) -> None:
    """The cohort's array belongs to the engine, which may write the next round into it."""
    rule = remembering(name)
    first, second, _ = rounds(rule)
    _, memory = rule.direction(first, rule.initial_memory())
    before = copy.deepcopy(memory)
    first.updates.fill_(123.0)
    torch.testing.assert_close(memory, before, rtol=0, atol=0, equal_nan=True)
    assert rule.direction(second, memory)[0].vector.isfinite().all()
