"""docs/hooks.md names every hook with its options, and its example works as printed."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from fedsim import plugins
from tests.clients.hooks.small import hook_of, trained
from tests.test_determinism import scenario_of

PAGE = (Path(__file__).parents[3] / "docs" / "hooks.md").read_text(encoding="utf-8")
NAMES = plugins.names("clients.hooks")


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_has_a_row_with_its_options_and_defaults(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*\|$", PAGE, re.MULTILINE)
    written = dict(re.findall(r"`(\w+)` ?([\w.-]*)", row.rpartition(" | ")[2]))
    fields = type(hook_of(name)).model_fields
    assert set(written) == set(fields)
    for option, default in written.items():
        value = fields[option].default
        if value is None:
            assert default == ""
        elif isinstance(value, float) and not isinstance(value, bool):
            assert float(default) == value
        else:
            assert default == str(value).lower()


def test_there_are_no_rows_of_hooks_that_do_not_exist() -> None:
    table = PAGE.partition("## What there is")[2].partition("`centroids` says")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == NAMES


def test_the_example_trains_as_the_scenario_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.partition("## One of your own")[2]
    (source,), (named,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "toml"))
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "penalty.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        (hook,) = scenario_of("fedavg", **tomllib.loads(named)).client.hooks
        assert hook.model_dump() == {"weight": 0.2}
        assert 10 <= len([line for line in source.splitlines() if line.strip()]) <= 30
        # It changes what is learnt.
        theta = trained(hook, local_epochs=30).update
        assert float((theta - trained(local_epochs=30).update).norm()) > 1e-3
        assert torch.isfinite(theta).all()
    finally:
        for name in ("mylab.penalty", "mylab"):
            sys.modules.pop(name, None)


def test_the_first_scenario_is_one() -> None:
    (first,) = re.findall(r"```toml\n(.*?)```", PAGE.partition("## What there is")[0], re.DOTALL)
    names = [hook.plugin_name for hook in scenario_of("fedavg", **tomllib.loads(first)).client.hooks]
    assert names == ["cmi", "proximal"]
