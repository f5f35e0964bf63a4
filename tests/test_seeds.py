"""Streams are pure functions of a seed and labels, and nothing else's state is touched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim import seeds

LABELS = st.lists(st.one_of(st.integers(-3, 50), st.text("abc:_", max_size=4)), max_size=4)


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    places = [("batches", number, client) for number in range(1, 4) for client in range(5)]
    forwards = {place: torch.rand(4, generator=seeds.generator(7, *place)) for place in places}
    torch.rand(100)
    backwards = {place: torch.rand(4, generator=seeds.generator(7, *place)) for place in reversed(places)}
    assert all(torch.equal(forwards[place], backwards[place]) for place in places)
    assert len({tuple(values.tolist()) for values in forwards.values()}) == len(places)


def test_drawing_from_one_generator_leaves_another_alone() -> None:
    first, second = seeds.generator(0, "a"), seeds.generator(0, "a")
    torch.rand(10, generator=first)
    assert torch.equal(torch.rand(3, generator=second), torch.rand(3, generator=seeds.generator(0, "a")))


@given(st.integers(0, 2**70), LABELS, st.integers(0, 2**70), LABELS)
def test_different_names_have_different_seeds(
    seed: int, labels: list[object], other: int, others: list[object]
) -> None:
    same = seed == other and [str(label) for label in labels] == [str(label) for label in others]
    assert (seeds.derive(seed, *labels) == seeds.derive(other, *others)) == same


def test_labels_are_not_run_together() -> None:
    assert seeds.derive(1, "a", "b") != seeds.derive(1, "ab")
    assert seeds.derive(1, 1, 2) != seeds.derive(1, 12)
    assert seeds.derive(1, 12) != seeds.derive(11, 2)
    assert seeds.derive(0, "a", "b") != seeds.derive(0, "b", "a")


@given(st.integers(0, 2**70), LABELS)
def test_a_seed_fits_63_bits(seed: int, labels: list[object]) -> None:
    assert 0 <= seeds.derive(seed, *labels) < 2**63


def test_a_seed_is_the_same_in_another_process() -> None:
    code = "from fedsim import seeds; print(seeds.derive(3, 'sample', 4), seeds.derive(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(seeds.derive(3, "sample", 4)), str(seeds.derive(0))]


def test_the_global_stream_is_put_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeds.global_stream(1, "model"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeds.global_stream(1, "model"):
        assert torch.equal(torch.rand(3), inside)
    with seeds.global_stream(2, "model"):
        assert not torch.equal(torch.rand(3), inside)


def test_the_global_stream_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), seeds.global_stream(1, "model"):  # noqa: PT012
        torch.rand(9)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)
