"""What every hook promises: purity, rows that fill up count for nothing, a memory of stable names."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.hooks import Draws, Hook, Memory
from clients.objective import Batch, Objective
from clients.training import shapes_of
from fedsim import plugins, seeds
from fedsim.models import Outputs
from tests.clients.hooks.small import NUM_CLASSES, hook_of, model, said, shapes, shard, start, step, trained
from tests.clients.test_stacked import CASES

COUNT = 7
GARBAGE = [1e30, math.inf, -math.inf, math.nan]


@pytest.fixture(params=CASES, ids=str)
def hook(request: pytest.FixtureRequest) -> Hook:
    name, options = request.param
    return hook_of(name, **options)


def drawn(hook: Hook, count: int) -> Draws:
    return hook.draw(seeds.generator(4), (count, 5))


def memory_of(hook: Hook) -> Memory:
    """A memory in the middle of training."""
    outputs, targets = said(19, 1, scale=1.0)
    memory = hook.init(shapes(batch_size=4), targets)
    full = torch.ones(19, dtype=torch.float64)
    if hook.passes != "never":
        memory = hook.refit(memory, hook.collect(memory, outputs, targets, full))
    with torch.no_grad():
        return hook.update(step(memory, 19, full, drawn(hook, 19), outputs), outputs, targets)


def copied(value: Any) -> list[Tensor]:
    tensors = value.values() if isinstance(value, dict) else value
    return [tensor.clone() for tensor in tensors]


def filled_up(outputs: Outputs, targets: Tensor, garbage: float) -> tuple[Outputs, Tensor, Tensor]:
    """The batch with three more rows that hold garbage."""
    logits, features = (torch.cat([part, torch.full_like(part[:3], garbage)]) for part in outputs)
    mask = torch.cat([torch.ones(len(targets)), torch.zeros(3)]).double()
    return Outputs(logits, features), torch.cat([targets, targets[:3]]), mask


def test_nothing_is_changed_in_place(hook: Hook) -> None:
    memory = dict(memory_of(hook))
    outputs, targets = said(COUNT)
    this = step(memory, COUNT, draws=drawn(hook, COUNT), teacher=said(COUNT, 9)[0])
    before = copied(memory), copied(outputs), targets.clone(), this.mask.clone()
    hook.loss(this, outputs, targets)
    with torch.no_grad():
        after = hook.update(this, outputs, targets)
        hook.collect(memory, outputs, targets, this.mask)
        hook.scores(memory, outputs)
    hook.report(memory)
    assert all(torch.equal(a, b) for a, b in zip(before[0], memory.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], outputs, strict=True))
    assert torch.equal(before[2], targets)
    assert torch.equal(before[3], this.mask)
    assert set(after) == set(memory)


def test_the_same_twice(hook: Hook) -> None:
    memory = memory_of(hook)
    outputs, targets = said(COUNT)
    found = []
    for _ in range(2):
        this = step(memory, COUNT, draws=drawn(hook, COUNT), teacher=said(COUNT, 9)[0])
        torch.rand(3)  # the global generator plays no part
        with torch.no_grad():
            found.append([hook.loss(this, outputs, targets), *hook.update(this, outputs, targets).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_loss_has_a_row_for_each_example(hook: Hook) -> None:
    outputs, targets = said(COUNT)
    this = step(memory_of(hook), COUNT, draws=drawn(hook, COUNT), teacher=said(COUNT, 9)[0])
    losses = hook.loss(this, outputs, targets)
    assert losses.shape == (COUNT,)
    assert losses.dtype == torch.float64
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_rows_that_fill_up_change_neither_loss_nor_gradient(hook: Hook, garbage: float) -> None:
    memory = memory_of(hook)
    outputs, targets = said(COUNT)
    teacher = said(COUNT, 9)[0]
    found = []
    for filled in (False, True):
        rows, classes, mask = filled_up(outputs, targets, garbage) if filled else (outputs, targets, None)
        theirs = filled_up(teacher, targets, garbage)[0] if filled else teacher
        leaves = Outputs(*(part.clone().requires_grad_() for part in rows))
        draws = drawn(hook, COUNT)
        if filled and draws.example is not None:
            draws = Draws(torch.cat([draws.example, torch.full_like(draws.example[:3], garbage)]))
        this = step(memory, len(classes), mask, draws, theirs)
        losses = hook.loss(this, leaves, classes)
        # As the training loop does it: a row that fills up is left out of the sum.
        value = losses.sum() if mask is None else torch.where(mask > 0, losses, 0.0).sum()
        grads = [torch.zeros_like(leaf) for leaf in leaves]
        if value.requires_grad:
            every = torch.autograd.grad(value, list(leaves), allow_unused=True)
            grads = [zero if g is None else g for zero, g in zip(grads, every, strict=True)]
        found.append([losses[:COUNT].detach(), *(g[:COUNT] for g in grads)])
    for plain, other in zip(*found, strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_rows_that_fill_up_change_no_memory(hook: Hook, garbage: float) -> None:
    memory = memory_of(hook)
    outputs, targets = said(COUNT)
    rows, classes, mask = filled_up(outputs, targets, garbage)
    with torch.no_grad():
        plain = step(memory, COUNT, draws=drawn(hook, COUNT), teacher=outputs)
        filled = step(memory, COUNT + 3, mask, drawn(hook, COUNT), rows)
        pairs = [
            (hook.update(plain, outputs, targets), hook.update(filled, rows, classes)),
            (hook.collect(memory, outputs, targets, plain.mask), hook.collect(memory, rows, classes, mask)),
        ]
    for one, other in pairs:
        assert set(one) == set(other)
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-14, msg=key)


def test_an_empty_batch_changes_no_memory_but_counters(hook: Hook) -> None:
    memory = memory_of(hook)
    outputs, targets = said(1)
    with torch.no_grad():
        after = hook.update(step(memory, 1, torch.zeros(1).double(), drawn(hook, 1), outputs), outputs, targets)
    for key, value in memory.items():
        moved = 1.0 if key in ("steps", "_steps") else 0.0
        torch.testing.assert_close(after[key], value + moved, rtol=1e-12, atol=1e-14, msg=key)


def test_what_is_collected_adds_up_over_batches(hook: Hook) -> None:
    memory = memory_of(hook)
    outputs, targets = said(12)

    def collect(rows: slice) -> Memory:
        part = Outputs(outputs.logits[rows], outputs.features[rows])
        return hook.collect(memory, part, targets[rows], torch.ones(len(targets[rows])).double())

    whole = collect(slice(0, 12))
    parts = [collect(slice(a, b)) for a, b in pairwise((0, 5, 6, 12))]
    assert bool(whole) == (hook.passes != "never")
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value, rtol=1e-12, atol=1e-13)
    if whole:
        assert set(hook.refit(memory, whole)) == set(memory)


def test_what_is_kept_comes_back(hook: Hook) -> None:
    """All of a memory but what belongs to the round, and only for hooks that keep one."""
    found = trained(hook, local_epochs=2)
    memory = hook.init(shapes(), torch.tensor([0]))
    kept = {f"{hook.plugin_name}.{key}" for key in memory if not key.startswith("_")}
    assert set(found.state) == (kept if hook.stateful else set())
    objective = Objective({hook.plugin_name: hook}, shapes())
    again = objective.init(shard().y, found.state)
    assert all(torch.equal(value, found.state[key]) for key, value in objective.kept(again).items())
    for key, value in hook.init(shapes(), shard().y).items():
        if key.startswith("_"):
            assert torch.equal(again[hook.plugin_name][key], value)


def test_two_trainings_have_equal_bits_and_finite_reports(hook: Hook) -> None:
    one, other = (trained(hook, local_epochs=2) for _ in range(2))
    assert torch.equal(one.update, other.update)
    assert one.report == other.report
    endless = {"dp_sgd-epsilon"} if getattr(hook, "noise", 1.0) == 0 else set()
    assert {name for name, value in one.report.items() if not math.isfinite(value)} == endless


@pytest.mark.parametrize("names", list(permutations(("cmi", "mcmi", "cmim"))), ids=str)
def test_the_order_of_what_joins_the_loss_does_not_matter(names: tuple[str, ...]) -> None:
    first = trained({name: hook_of(name) for name in sorted(names)}, local_epochs=2)
    found = trained({name: hook_of(name) for name in names}, local_epochs=2)
    torch.testing.assert_close(found.update, first.update, rtol=1e-11, atol=1e-13)
    assert found.report == pytest.approx(first.report, rel=1e-11)


def test_what_several_hooks_add_is_the_sum_of_what_each_adds() -> None:
    hooks = {name: hook_of(name) for name in ("cmi", "mcmi", "proximal", "label_smoothing")}
    base = trained(batch_size=23)
    together = trained(hooks, batch_size=23).update - base.update
    each = sum(trained(hook, batch_size=23).update - base.update for hook in hooks.values())
    torch.testing.assert_close(together, each, rtol=1e-10, atol=1e-13)


def test_rows_that_fill_up_may_hold_anything_in_the_objective() -> None:
    """A loss that is not finite in such a row is left out of the mean, not multiplied by 0."""
    network = model()
    network.theta.copy_(start())
    objective = Objective({"focal": hook_of("focal")}, shapes_of(network, shard().x[:1], 4))
    data = shard()
    x = torch.cat([data.x[:3], torch.full_like(data.x[:1], math.nan)])
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()
    y, memories = data.y[:4], objective.init(data.y, {})
    value, _ = objective.value(network.outputs, memories, Batch(x, y, mask, {}, {}))
    alone, _ = objective.value(network.outputs, memories, Batch(x[:3], y[:3], mask[:3], {}, {}))
    torch.testing.assert_close(value, alone, rtol=1e-14, atol=0.0)


def test_every_hook_has_tests_of_its_own() -> None:
    here = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(plugins.names("clients.hooks")) <= here


def test_classes_beyond_those_of_the_batch_are_no_matter(hook: Hook) -> None:
    """A client with a single class, as label skew gives, trains to finite weights."""
    data = shard()
    data.y.fill_(NUM_CLASSES - 1)
    found = trained(hook, data=data, local_epochs=2)
    assert torch.isfinite(found.update).all()
    assert all(torch.isfinite(value).all() for value in found.state.values())
