"""How fast clients are: distributions against their own formulas, and the order of a trace."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binom, lognorm, norm, uniform

from fedsim import plugins
from fedsim.errors import DataError
from fedsim.system.crowd import Crowd
from fedsim.system.rates import Rates
from fedsim.system.rates.classes import Classes
from fedsim.system.rates.constant import Constant
from fedsim.system.rates.lognormal import Lognormal
from fedsim.system.rates.trace import Trace
from fedsim.system.rates.uniform import Uniform

MADE: dict[str, Rates] = {
    "constant": Constant(value=3.0),
    "uniform": Uniform(low=2.0, high=6.0),
    "lognormal": Lognormal(median=100.0, sigma=0.8),
    "classes": Classes(shares=(0.2, 0.5, 0.3), values=(1.0, 5.0, 50.0), sigma=0.2),
}


def distance(values: np.ndarray, law: object) -> float:
    """Kolmogorov's distance times sqrt(n): above 2.7 once in a million."""
    values = np.sort(values)
    cdf, steps = law.cdf(values), np.arange(1, len(values) + 1) / len(values)  # type: ignore[attr-defined]
    return math.sqrt(len(values)) * float(max((steps - cdf).max(), (cdf - steps + 1 / len(values)).max()))


def test_every_distribution_is_looked_at_here() -> None:
    assert set(plugins.names("fedsim.system.rates")) == {*MADE, "trace"}


@pytest.mark.parametrize("name", MADE)
def test_rates_are_positive_the_same_for_a_seed_and_others_for_another_use(name: str) -> None:
    rates = MADE[name]
    found = rates.draw(Crowd(3, 300), "speed")
    assert found.shape == (300,)
    assert (found > 0).all()
    assert np.isfinite(found).all()
    assert np.array_equal(rates.draw(Crowd(3, 300), "speed"), found)
    if name != "constant":
        assert not np.array_equal(rates.draw(Crowd(4, 300), "speed"), found)
        assert not np.array_equal(rates.draw(Crowd(3, 300), "bandwidth_up"), found)


def test_laws() -> None:
    crowd = Crowd(5, 20_000)
    assert distance(Uniform(low=2.0, high=6.0).draw(crowd, "speed"), uniform(2.0, 4.0)) < 2.7
    found = Lognormal(median=100.0, sigma=0.8).draw(crowd, "speed")
    assert distance(found, lognorm(0.8, scale=100.0)) < 2.7
    assert distance(found, lognorm(0.9, scale=100.0)) > 2.7
    assert (Constant(value=3.0).draw(crowd, "speed") == 3.0).all()


def test_classes_have_their_shares_and_a_client_is_in_one_class_for_everything() -> None:
    crowd, shares = Crowd(5, 10_000), (0.2, 0.5, 0.3)
    speed = Classes(shares=shares, values=(10.0, 20.0, 30.0)).draw(crowd, "speed")
    line = Classes(shares=shares, values=(1.0, 2.0, 3.0)).draw(crowd, "bandwidth_up")
    assert np.array_equal(speed, 10 * line)
    for share, value in zip(shares, (10.0, 20.0, 30.0), strict=True):
        count = int((speed == value).sum())
        assert binom.ppf(5e-7, 10_000, share) <= count <= binom.isf(5e-7, 10_000, share)
    spread = Classes(shares=(0.5, 0.5), values=(1.0, 10.0), sigma=0.3).draw(crowd, "speed")
    place = Classes(shares=(0.5, 0.5), values=(1.0, 10.0)).draw(crowd, "speed")
    assert distance(np.log(spread / place), norm(0.0, 0.3)) < 2.7


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Uniform, {"low": 3.0, "high": 2.0}, "low must be at most high = 2, got 3"),
        (Classes, {"shares": (0.5, 0.4), "values": (1.0, 2.0)}, "shares must add up to 1, got 0.9"),
        (Classes, {"shares": (0.5, 0.5), "values": (1.0,)}, "one for each class, got 2 and 1"),
        (Classes, {"shares": (), "values": ()}, "one for each class, got 0 and 0"),
        (Lognormal, {"median": 0.0}, "greater than 0"),
    ],
)
def test_options_that_cannot_be(kind: type[Rates], options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind(**options)


def test_a_trace_gives_each_client_its_line_whatever_the_order(tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text("speed,client,up\n7,2,1\n5,0,2\n6,1,3\n9,8,4\n")
    crowd = Crowd(0, 3, tmp_path)
    assert Trace(path="devices.csv").draw(crowd, "speed").tolist() == [5, 6, 7]
    assert Trace(path="devices.csv", column="up").draw(crowd, "bandwidth_up").tolist() == [2, 3, 1]
    with pytest.raises(DataError, match="must name client, bandwidth_up, got speed, client, up"):
        Trace(path="devices.csv").draw(crowd, "bandwidth_up")
    with pytest.raises(DataError, match="has no line for client 3 and 3 more; every client needs a speed"):
        Trace(path="devices.csv").draw(Crowd(0, 7, tmp_path), "speed")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,0", r"devices\.csv, line 3: speed must be greater than 0, got 0"),
        ("1,-3", "line 3: speed must be greater than 0, got -3"),
        ("0,3", "line 3: client 0 has a line already; leave one of them"),
        ("1,nan", 'line 3: speed must be a finite number, got "nan"'),
        ("one,3", 'line 3: client must be a finite number, got "one"'),
    ],
)
def test_a_malformed_trace_is_refused_by_its_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text(f"client,speed\n0,5\n{line}\n")
    with pytest.raises(DataError, match=said):
        Trace(path="devices.csv").draw(Crowd(0, 2, tmp_path), "speed")
