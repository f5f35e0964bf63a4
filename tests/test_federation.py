from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import pytest
import torch

from fedsim import plugins
from fedsim.datasets import Dataset, RawData, Shard, Split
from fedsim.datasets.digits import Digits
from fedsim.datasets.heart import Heart
from fedsim.errors import DataError
from fedsim.federation import Federation
from fedsim.partitions import Partition
from fedsim.partitions.dirichlet import Dirichlet
from fedsim.partitions.iid import Iid
from fedsim.partitions.natural import Natural
from fedsim.partitions.resampled import Resampled
from fedsim.partitions.shards import Shards
from tests.datasets import samples

NOWHERE = Path("nowhere")


@final
class Numbered(Dataset):
    """Example i has the input i, so that a test can see who owns it."""

    counts: tuple[int, ...] = (60, 30, 10)
    owners: tuple[int, ...] | None = None
    shift: bool = False
    grouped: bool = False

    def load(self, root: Path) -> RawData:
        del root
        y = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))
        # Example i is of group i % 3.
        groups = torch.arange(len(y)) % 3 if self.grouped else None
        train = Split(torch.arange(len(y), dtype=torch.float32)[:, None], y, groups)
        owners = None
        if self.owners is not None:
            owners = np.array([f"owner {i}" for i, size in enumerate(self.owners) for _ in range(size)])
        names = tuple(f"class {i}" for i in range(len(self.counts)))
        return RawData(
            train,
            train[:5],
            len(names),
            names,
            owners,
            _shift if self.shift else None,
            ("a", "b", "c") if self.grouped else (),
        )


def _shift(shard: Shard) -> Shard:
    """Subtract the largest train input: shows what prepare is given."""
    top = shard.train.x.max()
    return Shard(Split(shard.train.x - top, shard.train.y), Split(shard.test.x - top, shard.test.y))


def build(dataset: Dataset, partition: Partition, seed: int = 0) -> Federation:
    return Federation.build(dataset, partition, seed, NOWHERE)


def numbers(split: Split) -> list[int]:
    return cast("list[int]", split.x[:, 0].long().tolist())


def test_every_example_is_in_one_place() -> None:
    federation = build(Numbered(), Iid(num_clients=4))
    shards = [federation.client(i) for i in range(4)]
    everything = [number for shard in shards for split in (shard.train, shard.test) for number in numbers(split)]
    assert sorted(everything) == list(range(100))
    assert federation.num_clients == 4
    assert federation.input_shape == (1,)
    assert federation.train_sizes.tolist() == [20] * 4
    assert federation.test_sizes.tolist() == [5] * 4
    assert federation.common_test is not None
    assert numbers(federation.common_test) == [0, 1, 2, 3, 4]


def test_shards_are_views_of_the_pools() -> None:
    federation = build(Numbered(), Iid(num_clients=4))
    shard = federation.client(2)
    assert shard.train.x.data_ptr() == federation.train.x[40:].data_ptr()
    assert shard.test.y.data_ptr() == federation.test.y[10:].data_ptr()


@pytest.mark.parametrize("i", [-1, 4])
def test_there_is_no_such_client(i: int) -> None:
    with pytest.raises(IndexError, match=f"clients are 0 to 3, got {i}"):
        build(Numbered(), Iid(num_clients=4)).client(i)


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((60, 30, 10), 0.2, [12, 6, 2]),
        ((7, 7, 6), 0.25, None),  # 1.75, 1.75, 1.5: 5 in all, the two largest remainders first
        ((1, 1, 1), 0.1, None),  # round(0.3) = 0, but one example must be tested on
        ((1, 1, 0), 0.9, None),  # round(1.8) = 2, but one must be trained on
    ],
)
def test_the_test_share_is_stratified(counts: tuple[int, ...], fraction: float, expected: list[int] | None) -> None:
    federation = build(Numbered(counts=counts), Iid(num_clients=1, test_fraction=fraction))
    taken = torch.bincount(federation.test.y, minlength=3).numpy()
    if expected is not None:
        assert taken.tolist() == expected
    n = sum(counts)
    assert taken.sum() == min(max(round(n * fraction), 1), n - 1)
    # Largest remainder: nobody is off by one or more from an exact share (unless the bounds forced it).
    if round(n * fraction) == taken.sum():
        assert (np.abs(taken - np.array(counts) * fraction) < 1).all()


def test_the_largest_remainders_go_first() -> None:
    federation = build(Numbered(counts=(7, 7, 6)), Iid(num_clients=1, test_fraction=0.25))
    assert torch.bincount(federation.test.y).tolist() == [2, 2, 1]


def test_equal_remainders_are_drawn() -> None:
    chosen = {int(build(Numbered(counts=(2, 2, 2)), Iid(num_clients=1), seed).test.y[0]) for seed in range(20)}
    assert chosen == {0, 1, 2}


def test_a_client_with_one_example_is_refused() -> None:
    with pytest.raises(DataError, match=r"client 0 needs at least 2 examples.*got 1; lower"):
        build(Numbered(counts=(3, 3)), Iid(num_clients=6))


def test_prepare_is_fitted_on_each_client_s_train_examples() -> None:
    plain = build(Numbered(), Iid(num_clients=5))
    shifted = build(Numbered(shift=True), Iid(num_clients=5))
    for i in range(5):
        top = plain.client(i).train.x.max()
        torch.testing.assert_close(shifted.client(i).train.x, plain.client(i).train.x - top)
        torch.testing.assert_close(shifted.client(i).test.x, plain.client(i).test.x - top)


def test_clients_keep_their_natural_names() -> None:
    federation = build(Numbered(owners=(50, 20, 30)), Natural())
    assert federation.client_names == ("owner 0", "owner 1", "owner 2")
    assert sorted(numbers(federation.client(1).train) + numbers(federation.client(1).test)) == list(range(50, 70))
    assert federation.manifest["clients"][2]["name"] == "owner 2"


@pytest.mark.parametrize(
    ("limit", "expected"), [(30, [10, 10, 10]), (50, [20, 20, 10]), (99, [59, 30, 10]), (500, [60, 30, 10])]
)
def test_limit_takes_the_same_of_each_class_as_far_as_it_goes(limit: int, expected: list[int]) -> None:
    federation = build(Numbered(limit=limit), Iid(num_clients=2))
    counts = torch.bincount(torch.cat([federation.train.y, federation.test.y]))
    assert counts.tolist() == expected


def test_limit_draws_with_the_seed_and_keeps_owners_in_step() -> None:
    def owned(seed: int) -> set[int]:
        federation = build(Numbered(limit=30, owners=(50, 50)), Natural(), seed)
        second = federation.client(1)
        assert min(numbers(second.train)) >= 50
        return set(numbers(federation.train) + numbers(federation.test))

    assert owned(1) == owned(1) != owned(2)


def test_chosen_classes_alone_are_divided_and_limited() -> None:
    federation = build(Numbered(classes=(2, 0), limit=15), Iid(num_clients=2))
    assert (federation.num_classes, federation.class_names) == (2, ("class 2", "class 0"))
    owned = sorted(numbers(federation.train) + numbers(federation.test))
    assert [number >= 90 for number in owned] == [False] * 8 + [True] * 7  # 15 of examples 0 to 59 and 90 to 99
    assert not set(owned) & set(range(60, 90))
    assert federation.common_test is not None
    assert federation.common_test.y.tolist() == [1] * 5
    assert federation.manifest["class_names"] == ["class 2", "class 0"]


def test_the_hash_tells_classes_apart_that_look_alike() -> None:
    one, other = (
        build(Numbered(counts=(20, 20, 20, 20), classes=classes), Iid(num_clients=4)).manifest
        for classes in ((0, 1), (2, 3))
    )
    assert one["clients"] == other["clients"]
    assert one["sha256"] != other["sha256"]


def test_pooled_test_examples_belong_to_clients() -> None:
    federation = build(Numbered(pool_test=True), Iid(num_clients=5))
    assert federation.common_test is None
    owned = sorted(numbers(federation.train) + numbers(federation.test))
    assert owned == sorted([*range(100), *range(5)])


def test_pooled_test_examples_have_no_owner() -> None:
    with pytest.raises(DataError, match=r"data.pool_test: nobody owns the test examples"):
        build(Numbered(pool_test=True, owners=(50, 50)), Natural())


@pytest.mark.parametrize(
    ("max_examples", "expected"),
    [
        (1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (12, [(0, 1), (1, 3), (3, 4)]),
        (16, [(0, 3), (3, 4)]),  # exactly full
        (1000, [(0, 4)]),
    ],
)
def test_evaluation_groups_are_packed_greedily(max_examples: int, expected: list[tuple[int, int]]) -> None:
    federation = build(Numbered(counts=(100, 100), owners=(50, 20, 10, 120)), Natural(test_fraction=0.2))
    assert federation.test_sizes.tolist() == [10, 4, 2, 24]
    groups = federation.evaluation_groups(max_examples)
    assert [(group.start, group.stop) for group in groups] == expected


def test_manifest_counts_the_examples() -> None:
    federation = build(Numbered(counts=(60, 30, 10)), Shards(num_clients=5, test_fraction=0.3), seed=9)
    manifest = json.loads(json.dumps(federation.manifest))
    assert manifest["dataset"] == "test_federation"  # the name is the module's
    assert manifest["dataset_options"]["counts"] == [60, 30, 10]
    assert manifest["partition"] == "shards"
    assert manifest["partition_options"] == {
        "test_fraction": 0.3,
        "seed": None,
        "num_clients": 5,
        "shards_per_client": 2,
    }
    assert (manifest["seed"], manifest["num_clients"], manifest["num_classes"]) == (9, 5, 3)
    for i, client in enumerate(manifest["clients"]):
        shard = federation.client(i)
        assert client["client"] == i
        assert client["name"] is None
        assert client["train"] == torch.bincount(shard.train.y, minlength=3).tolist()
        assert client["test"] == torch.bincount(shard.test.y, minlength=3).tolist()


@pytest.mark.parametrize("name", plugins.names("fedsim.partitions"))
def test_the_hash_follows_the_seed(name: str) -> None:
    kind = plugins.find("fedsim.partitions", name, Partition)
    options: dict[str, Any] = {"num_clients": 4} if "num_clients" in kind.model_fields else {}

    def digest(run_seed: int, **more: Any) -> str:
        federation = build(Numbered(owners=(40, 30, 20, 10)), kind(**options, **more), run_seed)
        return cast("str", federation.manifest["sha256"])

    assert len(digest(1)) == 64
    assert digest(1) == digest(1) != digest(2)
    assert digest(1, seed=2) == digest(2)


@pytest.mark.parametrize(
    "change",
    [
        lambda: build(Numbered(counts=(59, 31, 10)), Iid(num_clients=4)),  # other labels
        lambda: build(Numbered(), Iid(num_clients=4, test_fraction=0.24)),  # another share to test on
        lambda: build(Numbered(), Iid(num_clients=5)),
    ],
)
def test_the_hash_sees_every_change(change: Callable[[], Federation]) -> None:
    assert change().manifest["sha256"] != build(Numbered(), Iid(num_clients=4)).manifest["sha256"]


def test_test_fraction_alone_leaves_owners_unchanged() -> None:
    def owned(fraction: float) -> list[int]:
        shard = build(Numbered(), Iid(num_clients=4, test_fraction=fraction)).client(1)
        return sorted(numbers(shard.train) + numbers(shard.test))

    assert owned(0.2) == owned(0.5)


def test_pickling_shares_memory_out_of_band() -> None:
    federation = build(Digits(), Dirichlet(num_clients=5))
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(federation)
    data_bytes = federation.train.x.numel() * 4 + federation.test.x.numel() * 4
    assert stream.tell() < data_bytes / 10
    # Read-only buffers, as from a store that processes share.
    copy = pickle.loads(stream.getvalue(), buffers=[memoryview(bytes(buffer)).toreadonly() for buffer in buffers])
    assert copy.manifest == federation.manifest
    torch.testing.assert_close(copy.client(3).train.x, federation.client(3).train.x)


@pytest.mark.parametrize("shift", [False, True])  # prepare knows nothing of groups
@pytest.mark.parametrize("limit", [None, 57])
def test_an_example_keeps_its_group_wherever_it_goes(shift: bool, limit: int | None) -> None:
    federation = build(Numbered(grouped=True, shift=shift, limit=limit), Dirichlet(num_clients=4))
    assert federation.group_names == ("a", "b", "c")
    assert federation.manifest["group_names"] == ["a", "b", "c"]
    moved = pickle.loads(pickle.dumps(federation))
    same = build(Numbered(limit=limit), Dirichlet(num_clients=4))  # the example numbers, before prepare
    for client in range(4):
        drawn = same.client(client)
        for shard in (federation.client(client), moved.client(client)):
            for split, original in ((shard.train, drawn.train), (shard.test.to(torch.device("cpu")), drawn.test)):
                assert split.groups is not None
                assert split.groups.tolist() == [number % 3 for number in numbers(original)]


def test_groups_change_neither_division_nor_hash() -> None:
    plain, grouped = (build(Numbered(grouped=grouped), Dirichlet(num_clients=4)) for grouped in (False, True))
    assert "group_names" not in plain.manifest
    assert plain.train.groups is None
    assert plain.manifest["sha256"] == grouped.manifest["sha256"]
    assert numbers(plain.train) == numbers(grouped.train)


def test_as_many_groups_as_examples() -> None:
    with pytest.raises(ValueError, match="groups and y must have the same length, got 2 and 3"):
        Split(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


def test_no_feature_of_one_hospital_changes_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_heart(tmp_path, monkeypatch)
    path = tmp_path / "heart_disease_uci.csv"
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, *[first] * 3, *[second] * 3]))
    before = Federation.build(Heart(), Natural(), 0, tmp_path)
    path.write_text("\n".join([header, *[first.replace("63", "20")] * 3, *[second] * 3]))
    after = Federation.build(Heart(), Natural(), 0, tmp_path)
    assert before.client_names == ("Cleveland", "Hungary")
    torch.testing.assert_close(before.client(1).train.x, after.client(1).train.x)
    assert not before.train.x.isnan().any()


def test_real_hospitals(data_root: Path) -> None:
    federation = Federation.build(Heart(), Natural(), 0, data_root)
    assert federation.client_names == ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
    assert (federation.train_sizes + federation.test_sizes).tolist() == [304, 293, 123, 200]
    assert federation.train.x.isfinite().all()
    assert federation.test.x.isfinite().all()
    # Switzerland has no cholesterol: 0 for all, not another hospital's median.
    assert (federation.client(2).train.x[:, 2] == 0).all()
    for i in (0, 1, 3):
        column = federation.client(i).train.x[:, 2]
        assert abs(column.mean().item()) < 1e-5
        assert column.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


class TestValidation:
    """Part of each client's train shard takes the place of its test shard."""

    @pytest.mark.parametrize(
        "partition",
        [Iid(num_clients=4), Dirichlet(num_clients=3, alpha=0.5), Resampled(num_clients=9, examples=20, alpha=1.0)],
        ids=["iid", "dirichlet", "resampled"],
    )
    @pytest.mark.parametrize("fraction", [0.1, 0.5])
    def test_it_comes_from_the_train_shard_and_the_test_shard_is_gone(
        self, partition: Partition, fraction: float
    ) -> None:
        plain = build(Numbered(), partition, seed=3)
        held = Federation.build(Numbered(), partition, 3, NOWHERE, validation=fraction)
        assert held.num_clients == plain.num_clients
        for client in range(plain.num_clients):
            whole, divided = plain.client(client), held.client(client)
            trained, validated = numbers(divided.train), numbers(divided.test)
            assert sorted(trained + validated) == sorted(numbers(whole.train))
            assert not set(trained) & set(validated)
            assert not set(trained + validated) & set(numbers(whole.test))
            assert len(validated) == max(1, round(fraction * len(whole.train)))
        assert held.common_test is None
        assert plain.common_test is not None

    def test_nobody_is_validated_on_what_anybody_is_tested_on(self) -> None:
        partition = Resampled(num_clients=30, examples=10)
        plain = build(Numbered(), partition)
        held = Federation.build(Numbered(), partition, 0, NOWHERE, validation=0.3)
        shards = [held.client(i) for i in range(held.num_clients)]
        seen = {n for shard in shards for split in (shard.train, shard.test) for n in numbers(split)}
        tested = {n for i in range(plain.num_clients) for n in numbers(plain.client(i).test)}
        assert not seen & tested

    def test_it_keeps_each_classs_share(self) -> None:
        held = Federation.build(Numbered(), Iid(num_clients=1, test_fraction=0.5), 0, NOWHERE, validation=0.2)
        assert [int((held.client(0).test.y == label).sum()) for label in range(3)] == [6, 3, 1]

    def test_it_is_drawn_from_the_seed_of_the_partition(self) -> None:
        def validated(partition: Partition, seed: int) -> list[int]:
            return numbers(Federation.build(Numbered(), partition, seed, NOWHERE, validation=0.3).test)

        own, none = Iid(num_clients=4, seed=7), Iid(num_clients=4)
        assert validated(own, 1) == validated(own, 2) == validated(none, 7)
        assert validated(none, 1) != validated(none, 2)

    def test_the_manifest_says_so_and_counts_what_is_there(self) -> None:
        plain = build(Numbered(), Iid(num_clients=4))
        held = Federation.build(Numbered(), Iid(num_clients=4), 0, NOWHERE, validation=0.25)
        assert held.manifest["validation"] == 0.25
        assert "validation" not in plain.manifest
        assert held.manifest["sha256"] != plain.manifest["sha256"]

    def test_what_prepares_a_shard_sees_no_test_example(self) -> None:
        """Subtracting the largest train input shows which were given."""
        partition = Iid(num_clients=1)
        whole = numbers(build(Numbered(), partition).client(0).train)
        shard = Federation.build(Numbered(shift=True), partition, 0, NOWHERE, validation=0.3).client(0)
        both = sorted(numbers(shard.train) + numbers(shard.test))
        top = max(whole) - max(both)
        assert max(numbers(shard.train)) == 0
        assert [number + top for number in both] == sorted(whole)

    def test_a_train_shard_of_one_example_cannot_be_divided(self) -> None:
        partition = Iid(num_clients=50, test_fraction=0.5)
        assert build(Numbered(), partition).num_clients == 50
        with pytest.raises(DataError, match="client 0 needs at least 2 examples"):
            Federation.build(Numbered(), partition, 0, NOWHERE, validation=0.5)
