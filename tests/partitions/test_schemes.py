"""What sets each scheme apart."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._rows import Rows
from fedsim.partitions.dirichlet import Dirichlet
from fedsim.partitions.iid import Iid
from fedsim.partitions.natural import Natural
from fedsim.partitions.pathological import Pathological
from fedsim.partitions.shards import Shards

LABELS = np.repeat(np.arange(10), 100)


def test_iid_shares_are_equal_and_shuffled() -> None:
    parts, _ = Iid(num_clients=7).assign(LABELS, None, seed=0)
    assert {len(part) for part in parts} == {142, 143}
    # Without shuffling the sorted labels would give each client two classes.
    assert min(len(np.unique(LABELS[part])) for part in parts) == 10


@pytest.mark.parametrize("scheme", [Iid(num_clients=1000), Shards(num_clients=1000, shards_per_client=1)])
def test_as_many_clients_as_examples_get_one_each(scheme: Partition) -> None:
    parts, _ = scheme.assign(LABELS, None, seed=0)
    assert [len(part) for part in parts] == [1] * 1000


def test_shards_are_of_few_classes_and_equal() -> None:
    parts, _ = Shards(num_clients=25, shards_per_client=2).assign(LABELS, None, seed=0)
    # 50 shards of 20 examples, 5 to a class: a client has at most 2 classes.
    assert {len(part) for part in parts} == {40}
    assert max(len(np.unique(LABELS[part])) for part in parts) == 2


def test_shards_leave_out_only_what_fills_no_shard() -> None:
    parts, _ = Shards(num_clients=7, shards_per_client=3).assign(LABELS, None, seed=0)
    assert [len(part) for part in parts] == [3 * (1000 // 21)] * 7


def test_too_many_shards_name_the_first_client_without() -> None:
    with pytest.raises(DataError, match="client 333 could not be served; lower it to 333"):
        Shards(num_clients=400, shards_per_client=3).assign(LABELS, None, seed=0)


def test_pathological_clients_have_exactly_so_many_classes() -> None:
    parts, _ = Pathological(num_clients=20, classes_per_client=3).assign(LABELS, None, seed=0)
    assert {len(np.unique(LABELS[part])) for part in parts} == {3}
    assert sum(map(len, parts)) == 1000
    assert all(client % 10 in LABELS[part] for client, part in enumerate(parts))


def test_pathological_shares_of_a_class_are_drawn_not_runs_of_the_file() -> None:
    first, _ = Pathological(num_clients=20, classes_per_client=1).assign(LABELS, None, seed=0)
    assert not np.array_equal(first[0], np.arange(50))
    assert set(first[0]) | set(first[10]) == set(range(100))


def test_pathological_refuses_more_classes_than_there_are() -> None:
    with pytest.raises(DataError, match=r"partition\.classes_per_client: client 0 cannot have 11 .* 10 or less"):
        Pathological(num_clients=5, classes_per_client=11).assign(LABELS, None, seed=0)


def test_pathological_refuses_a_class_with_too_few_examples() -> None:
    with pytest.raises(DataError, match=r"more clients share a class.*Label: \d"):
        Pathological(num_clients=1000, classes_per_client=2).assign(LABELS, None, seed=0)


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_blocks_of_classes_are_fedlf_s(wanted: int) -> None:
    """Against the assignment of its separate_data.py, written out: fill clients in order, class by class."""
    num_clients = 20
    left, expected = [wanted] * num_clients, [[] for _ in range(num_clients)]
    for label in range(10):
        for client in [c for c in range(num_clients) if left[c] > 0][: num_clients // 10 * wanted]:
            expected[client].append(label)
            left[client] -= 1
    scheme = Pathological(num_clients=num_clients, classes_per_client=wanted, assignment="blocks")
    parts, _ = scheme.assign(LABELS, None, seed=0)
    assert [np.unique(LABELS[part]).tolist() for part in parts] == expected
    assert {len(part) for part in parts} == {50}
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    again, _ = scheme.assign(LABELS, None, seed=1)
    assert [part.tolist() for part in parts] != [part.tolist() for part in again]


def test_one_class_a_client_is_the_same_division_of_classes_either_way() -> None:
    for clients in (3, 100):
        labels = LABELS[: 100 * min(clients, 10)]
        for assignment in ("drawn", "blocks"):
            scheme = Pathological(num_clients=clients, classes_per_client=1, assignment=assignment)
            parts, _ = scheme.assign(labels, None, seed=0)
            classes = [int(labels[part[0]]) for part in parts]
            assert all(len(np.unique(labels[part])) == 1 for part in parts)
            assert np.bincount(classes).tolist() == [clients // min(clients, 10)] * min(clients, 10)


@pytest.mark.parametrize(("clients", "wanted"), [(20, 3), (12, 2), (21, 1)])
def test_blocks_that_do_not_come_out_even_are_refused(clients: int, wanted: int) -> None:
    with pytest.raises(DataError, match=rf'partition\.assignment: "blocks" needs .* got {wanted} and {clients}'):
        Pathological(num_clients=clients, classes_per_client=wanted, assignment="blocks").assign(
            LABELS, None, seed=0
        )


def test_blocks_refuse_a_class_with_too_few_examples() -> None:
    with pytest.raises(DataError, match="2 clients share class 9 of 1 examples; lower"):
        Pathological(num_clients=20, classes_per_client=1, assignment="blocks").assign(LABELS[:901], None, seed=0)


def test_dirichlet_alpha_turns_the_skew() -> None:
    def mean_top_share(alpha: float) -> float:
        parts, _ = Dirichlet(num_clients=10, alpha=alpha, min_size=1).assign(LABELS, None, seed=0)
        assert sum(map(len, parts)) == 1000
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    assert mean_top_share(0.1) > 0.4 > 0.25 > mean_top_share(1000.0)


def test_dirichlet_keeps_the_minimum() -> None:
    parts, _ = Dirichlet(num_clients=10, alpha=0.3, min_size=40).assign(LABELS, None, seed=0)
    assert min(map(len, parts)) >= 40


def test_dirichlet_balancing_caps_the_largest() -> None:
    def largest(self_balancing: bool) -> int:
        scheme = Dirichlet(num_clients=10, alpha=0.2, min_size=1, self_balancing=self_balancing)
        return max(len(part) for seed in range(5) for part in scheme.assign(LABELS, None, seed)[0])

    # A client stops receiving past the average of 100, so it ends at no more than 100 plus one class.
    assert largest(True) <= 200 < largest(False)


def test_an_impossible_dirichlet_names_clients_and_ends_soon() -> None:
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        Dirichlet(num_clients=50, alpha=0.01, min_size=10).assign(LABELS, None, seed=0)
    assert time.process_time() - start < 5.0
    message = str(caught.value)
    assert "alpha 0.01" in message
    assert "min_size 10 of 1000 examples" in message
    assert "client 0 got" in message
    assert "raise partition.alpha" in message


def test_a_minimum_that_cannot_add_up_is_refused_without_trying() -> None:
    with pytest.raises(
        DataError, match=r"partition\.min_size: 50 clients of at least 21 need 1050 examples, got 1000"
    ):
        Dirichlet(num_clients=50, min_size=21).assign(LABELS, None, seed=0)


def test_natural_clients_are_named_and_ordered_by_name() -> None:
    owners = np.array(["c", "a", "b", "a", "c", "c", "lone"])
    parts, names = Natural().assign(np.zeros(7, dtype=np.int64), owners, seed=0)
    assert names == ("a", "c")  # b and lone have one example, which cannot be trained and tested on
    assert [part.tolist() for part in parts] == [[1, 3], [0, 4, 5]]


def test_natural_keeps_the_largest() -> None:
    owners = np.array(["d", "d", "a", "a", "b", "b", "b", "c", "c"])
    parts, names = Natural(max_clients=2).assign(np.zeros(9, dtype=np.int64), owners, seed=0)
    assert names == ("a", "b")  # b is the largest; a goes before c and d of the same size
    assert [part.tolist() for part in parts] == [[2, 3], [4, 5, 6]]


def test_natural_needs_owners() -> None:
    with pytest.raises(DataError, match="no natural owners; choose iid"):
        Natural().assign(LABELS, None, seed=0)


def test_natural_refuses_when_all_owners_are_too_small() -> None:
    with pytest.raises(DataError, match='none of the 2 owners has 3 examples, the largest, "b", has 2'):
        Natural(min_examples=3).assign(np.zeros(3, dtype=np.int64), np.array(["a", "b", "b"]), seed=0)


def test_rows_answer_as_the_class_they_stand_in_for() -> None:
    import datasets

    label, index = np.array([2, 0, 1, 0]), np.array([7, 5, 6, 4])
    fast, slow = Rows(label, index), datasets.Dataset.from_dict({"label": label, "index": index})
    for mine, theirs in (
        (fast, slow),
        (fast.select([3, 1]), slow.select([3, 1])),
        (fast.select(range(2)), slow.select(range(2))),
        (fast.shard(3, 1, contiguous=True), slow.shard(3, 1, contiguous=True)),
        (fast.sort("label"), slow.select([1, 3, 2, 0])),
    ):
        assert len(mine) == mine.num_rows == len(theirs)
        assert list(mine["index"]) == list(theirs["index"])
        assert list(mine["label"]) == list(theirs["label"])
        assert mine[0] == theirs[0]
    assert sorted(fast.unique("label")) == sorted(slow.unique("label"))
