"""UCI heart disease: 920 patients of four hospitals, the classic natural cross-silo federation.

Janosi, Steinbrunn, Pfisterer, Detrano: https://archive.ics.uci.edu/dataset/45/heart+disease.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from fedsim.datasets import Dataset, RawData, Shard, Split
from fedsim.errors import DataError

_FILE = "heart_disease_uci.csv"
_ORIGIN = "https://archive.ics.uci.edu/dataset/45/heart+disease (as one file with a column `dataset`)"
_NUMERIC = ("age", "trestbps", "chol", "thalch", "oldpeak", "ca")
_CATEGORICAL = {
    "sex": ("Female", "Male"),
    "cp": ("asymptomatic", "atypical angina", "non-anginal", "typical angina"),
    "fbs": ("FALSE", "TRUE"),
    "restecg": ("lv hypertrophy", "normal", "st-t abnormality"),
    "exang": ("FALSE", "TRUE"),
    "slope": ("downsloping", "flat", "upsloping"),
    "thal": ("fixed defect", "normal", "reversable defect"),
}
# No living patient has a cholesterol or blood pressure of 0: that is how the file writes "not measured".
_ZERO_IS_MISSING = frozenset({"chol", "trestbps"})
_GROUPS = ("female", "male")
"""As in the original, where sex is 0 for female and 1 for male; the file spells it out."""
_COLUMNS = (*_NUMERIC, *_CATEGORICAL, "dataset", "num")


@final
class Heart(Dataset):
    """Is a heart disease present (num > 0)? Owners are the hospitals, groups the sexes; no official test set.

    x is [N, 25] float32: 6 numeric features, then the one-hot codes of 7 categorical ones with a fixed
    vocabulary. A missing number is NaN until `prepare` imputes it, a missing category is all zeros.
    `prepare` fits the median, mean and standard deviation of the numeric features on the client's own train
    examples; nothing crosses clients.
    """

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        path = root / _FILE
        rows = _read(path)
        x = np.array([_features(row, f"{path}, line {line}") for line, row in rows], dtype=np.float32)
        y = np.array([_number(row, "num", f"{path}, line {line}") > 0 for line, row in rows], dtype=np.int64)
        owners = np.array([row["dataset"] for _, row in rows])
        groups = np.array([_group(row["sex"]) for _, row in rows], dtype=np.int64)
        train = Split(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(groups))
        return RawData(train, None, 2, ("healthy", "disease"), owners, prepare, _GROUPS)


def prepare(shard: Shard) -> Shard:
    """Impute the median and standardise the numeric features, both fitted on the shard's train examples.

    A feature with no observed value in the train examples becomes 0 everywhere; so does a constant one's
    train part.
    """
    columns = len(_NUMERIC)
    known = shard.train.x[:, :columns].double()
    median = torch.nan_to_num(known.nanquantile(0.5, dim=0))
    observed = ~known.isnan().all(dim=0)
    filled = torch.where(known.isnan(), median, known)
    mean = filled.mean(dim=0)
    std = filled.std(dim=0, correction=0)
    # The deviation of a constant column may be rounding noise: dividing by it would blow up the test split.
    std = torch.where(std > 1e-9, std, torch.ones_like(std))

    def apply(split: Split) -> Split:
        numeric = split.x[:, :columns].double()
        numeric = (torch.where(numeric.isnan(), median, numeric) - mean) / std
        numeric = torch.where(observed, numeric, torch.zeros_like(numeric))
        x: Tensor = torch.cat([numeric.float(), split.x[:, columns:]], dim=1)
        return Split(x, split.y)

    return Shard(apply(shard.train), apply(shard.test))


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, row) of every patient."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            absent = [name for name in _COLUMNS if name not in header]
            if absent:
                raise DataError(f"{path}: missing columns {', '.join(absent)}; fetch the file again from {_ORIGIN}")
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; it comes from {_ORIGIN}: put it there, or point --data or "
            "FEDSIM_DATA to the "
            f"folder that holds {_FILE}"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again from {_ORIGIN}") from error
    for line, row in rows:
        if None in row or None in row.values() or not row["dataset"]:
            raise DataError(f"{path}, line {line}: needs {len(header)} fields and a hospital; fetch the file again")
    if not rows:
        raise DataError(f"{path}: holds no patient; fetch it again from {_ORIGIN}")
    return rows


def _features(row: dict[str, str], where: str) -> list[float]:
    values = [_number(row, name, where) for name in _NUMERIC]
    for name, vocabulary in _CATEGORICAL.items():
        value = row[name].upper() if vocabulary[-1] == "TRUE" else row[name]
        if value and value not in vocabulary:
            raise DataError(
                f'{where}: {name} must be one of {", ".join(vocabulary)} or empty, got "{value}"; mend it'
            )
        values += [float(value == word) for word in vocabulary]
    return values


def _group(sex: str) -> int:
    """Return the number of a patient's group, -1 where the file has no sex; `_features` has refused other words."""
    return _GROUPS.index(sex.lower()) if sex else -1


def _number(row: dict[str, str], name: str, where: str) -> float:
    text = row[name]
    if not text and name != "num":
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise DataError(f'{where}: {name} must be a number, got "{text}"; mend it or fetch the file again')
    return float("nan") if value == 0 and name in _ZERO_IS_MISSING else value
