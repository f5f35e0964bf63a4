"""What docs/studies.md shows of the tables of a study is what they have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pandas as pd
import pytest

import fedsim
from tests.study_report.studies import make_study

PAGE = Path(fedsim.__file__).resolve().parents[1] / "docs" / "studies.md"


@pytest.mark.parametrize("partitions", [None, 2])
def test_every_line_of_the_example_shows_a_table(tmp_path, monkeypatch, partitions):
    make_study(tmp_path / "runs" / "mine", seeds=2, partitions=partitions, num_clients=10, rounds=100, every=50)
    monkeypatch.chdir(tmp_path)
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "load_study" in code]
    names, shown = {}, []
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            shown.append(eval(compile(ast.Expression(statement.value), str(PAGE), "eval"), names))
        else:
            exec(compile(ast.Module([statement], []), str(PAGE), "exec"), names)
    results, by_seed, final, worst = shown
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in shown)
    others = results[results["method"] != "fedavg"]
    assert others[["mean", "difference", "t_p_holm"]].notna().all(axis=None)
    assert by_seed.notna().all(axis=None)
    assert (final["count"] == 10 * 2 * (partitions or 1)).all()
    assert worst["test_accuracy"].is_monotonic_increasing
    assert len(worst) == 5
