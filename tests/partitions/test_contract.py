"""What every partition scheme promises, checked on each one in the folder."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim import plugins
from fedsim.errors import DataError
from fedsim.partitions import Partition

NAMES = plugins.names("fedsim.partitions")
N = 600
OWNERS = np.array([f"owner {number:02d}" for number in np.random.default_rng(1).integers(0, 12, N)])


def scheme(name: str, **options: Any) -> Partition:
    kind = plugins.find("fedsim.partitions", name, Partition)
    if "num_clients" in kind.model_fields:
        options.setdefault("num_clients", 12)
    return kind(**options)


def labels() -> NDArray[np.int64]:
    """Return sorted labels of unequal classes: an unshuffled scheme would show."""
    return np.sort(np.random.default_rng(0).choice(5, N, p=[0.1, 0.15, 0.2, 0.25, 0.3]))


@pytest.mark.parametrize("name", NAMES)
def test_clients_own_disjoint_examples_unless_they_overlap_and_none_is_empty(name: str) -> None:
    division = scheme(name)
    parts, names = division.assign(labels(), OWNERS, seed=3)
    assert len(parts) == 12
    assert min(len(part) for part in parts) >= 1
    owned = np.concatenate(parts)
    assert all(len(set(part.tolist())) == len(part) for part in parts)
    assert (len(set(owned.tolist())) == len(owned)) is not division.overlaps
    assert owned.min() >= 0
    assert owned.max() < N
    assert all(part.dtype == np.int64 for part in parts)
    assert names is None or len(names) == len(set(names)) == 12


@pytest.mark.parametrize("name", NAMES)
def test_all_examples_are_used_or_the_docstring_says_which_are_not(name: str) -> None:
    parts, _ = scheme(name).assign(labels(), OWNERS, seed=3)
    complete = len(np.unique(np.concatenate(parts))) == N
    assert complete or "left out" in (type(scheme(name)).__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_a_scheme_draws_itself_are_what_it_assigns(name: str) -> None:
    division = scheme(name)
    parts, _ = division.assign(labels(), OWNERS, seed=3)
    sides = division.sides(labels(), 3)
    assert (sides is not None) or not division.overlaps
    for client, part in enumerate(parts if sides is not None else []):
        train, test = (side[client] for side in sides or ())
        assert sorted([*train.tolist(), *test.tolist()]) == part.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    def parts(seed: int) -> list[list[int]]:
        return [part.tolist() for part in scheme(name).assign(labels(), OWNERS, seed)[0]]

    assert parts(3) == parts(3)
    if name != "natural":  # nothing is drawn
        assert parts(3) != parts(4)


@pytest.mark.parametrize("name", NAMES)
def test_large_seeds_are_taken(name: str) -> None:
    assert len(scheme(name).assign(labels(), OWNERS, seed=2**62 + 1)[0]) == 12


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("natural", "resampled")])
def test_more_clients_than_examples_is_one_clear_error(name: str) -> None:
    with pytest.raises(DataError, match=r"^partition\.num_clients: .*601.*client \d+ .*(lower|set) .*") as caught:
        scheme(name, num_clients=N + 1).assign(labels(), OWNERS, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_clients_take_less_than_two_seconds(name: str) -> None:
    big = np.random.default_rng(0).integers(0, 10, 60_000)
    owners = np.array([f"{number:03d}" for number in np.random.default_rng(1).integers(0, 100, 60_000)])
    division = scheme(name) if name == "natural" else scheme(name, num_clients=100)
    scheme(name).assign(labels(), OWNERS, seed=0)  # the imports do not count
    start = time.process_time()
    parts, _ = division.assign(big, owners, seed=0)
    assert len(parts) == 100
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_printed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    scheme(name).assign(labels(), OWNERS, seed=0)
    assert capfd.readouterr() == ("", "")
