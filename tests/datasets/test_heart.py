from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.datasets import Shard, Split
from fedsim.datasets.heart import Heart, prepare
from fedsim.errors import DataError
from tests.datasets import samples

NAN = float("nan")


def shard(train: list[list[float]], test: list[list[float]]) -> Shard:
    """Return a shard of the 6 numeric features, the rest zero."""

    def split(rows: list[list[float]]) -> Split:
        x = torch.zeros(len(rows), 25)
        x[:, :6] = torch.tensor(rows)
        return Split(x, torch.zeros(len(rows), dtype=torch.int64))

    return Shard(split(train), split(test))


def one_hot(digits: str) -> list[int]:
    return [int(digit) for digit in digits.replace(" ", "")]


def test_features_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_heart(tmp_path, monkeypatch)
    raw = Heart().load(tmp_path)
    # sex F M | cp 4 | fbs F T | restecg 3 | exang F T | slope 3 | thal 3, each in alphabetical order
    codes = one_hot("01 0001 01 100 10 100 100")
    np.testing.assert_allclose(raw.train.x[0], [63, 145, 233, 150, 2.3, 0, *codes], rtol=1e-6)
    # The second patient misses all but age, sex, pain and ECG; pressure 0 and cholesterol 0 are gaps.
    codes = one_hot("10 0010 00 010 00 000 000")
    np.testing.assert_equal(raw.train.x[1].numpy(), np.array([41, *[NAN] * 5, *codes], dtype=np.float32))
    assert raw.train.y.tolist() == [0, 1]
    assert raw.owners is not None
    assert raw.owners.tolist() == ["Cleveland", "Hungary"]
    assert raw.train.groups is not None
    assert [raw.group_names[g] for g in raw.train.groups.tolist()] == ["male", "female"]


def test_a_patient_whose_sex_is_not_on_file_is_of_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_heart(tmp_path, monkeypatch)
    file = tmp_path / "heart_disease_uci.csv"
    file.write_text(file.read_text().replace("Female", ""))
    groups = Heart().load(tmp_path).train.groups
    assert groups is not None
    assert groups.tolist() == [1, -1]


def test_prepare_imputes_the_train_median_and_standardises() -> None:
    done = prepare(shard([[1.0] * 6, [2.0] * 6, [9.0] * 6, [NAN] * 6], [[NAN] * 6, [2.0] * 6]))
    filled = np.array([1.0, 2.0, 9.0, 2.0])  # the median of 1, 2, 9 is 2
    expected = (filled - filled.mean()) / filled.std()
    np.testing.assert_allclose(done.train.x[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(done.test.x[:, 3], [expected[1], expected[1]], rtol=1e-6)


def test_prepare_never_looks_at_the_test_examples() -> None:
    one = prepare(shard([[1.0] * 6, [5.0] * 6], [[3.0] * 6]))
    other = prepare(shard([[1.0] * 6, [5.0] * 6], [[1000.0] * 6]))
    torch.testing.assert_close(one.train.x, other.train.x)


def test_a_feature_never_observed_in_training_becomes_zero() -> None:
    done = prepare(shard([[NAN, 1, 1, 1, 1, 1], [NAN, 2, 2, 2, 2, 2]], [[7.0, NAN, 1, 1, 1, 1]]))
    assert done.train.x[:, 0].tolist() == [0.0, 0.0]
    assert done.test.x[0, 0].item() == 0.0
    assert not done.test.x.isnan().any()


def test_a_constant_feature_does_not_divide_by_zero() -> None:
    done = prepare(shard([[0.1] * 6] * 7, [[1.1] * 6]))
    torch.testing.assert_close(done.train.x[:, :6], torch.zeros(7, 6))
    torch.testing.assert_close(done.test.x[0, :6], torch.ones(6))


def test_categories_are_left_alone() -> None:
    given = shard([[1.0] * 6, [2.0] * 6], [[3.0] * 6])
    given.train.x[:, 10] = 1.0
    torch.testing.assert_close(prepare(given).train.x[:, 6:], given.train.x[:, 6:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("thalch", "pulse", "missing columns thalch"),
        ("non-anginal", "stubbed toe", r'line 3: cp must be one of .*, got "stubbed toe"'),
        (",41,", ",old,", r'line 3: age must be a number, got "old"'),
        (",3\n", ",\n", r'line 3: num must be a number, got ""'),
        (",,,,,3\n", "\n", "line 3: needs 16 fields"),
        (",,,,,3\n", ",,,,,3,9\n", "line 3: needs 16 fields"),
        ("Hungary", "", "line 3: needs 16 fields and a hospital"),
    ],
)
def test_a_corrupt_file_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    samples.write_heart(tmp_path, monkeypatch)
    path = tmp_path / "heart_disease_uci.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        Heart().load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x89PNG\x00\x00"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "heart_disease_uci.csv").write_bytes(content)
    with pytest.raises(DataError, match="fetch"):
        Heart().load(tmp_path)


def test_the_real_hospitals(data_root: Path) -> None:
    raw = Heart().load(data_root)
    assert raw.owners is not None
    names, counts = np.unique(raw.owners, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "Cleveland": 304,
        "Hungary": 293,
        "Switzerland": 123,
        "VA Long Beach": 200,
    }
    assert torch.bincount(raw.train.y).tolist() == [411, 509]
    # Switzerland measured no cholesterol: the file writes 0.
    assert raw.train.x[raw.owners == "Switzerland", 2].isnan().all()
