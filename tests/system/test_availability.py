"""Who is there: frequencies against expectation, and what a trace says against a look at every line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, binom

from fedsim.errors import DataError
from fedsim.system.availability import Availability
from fedsim.system.availability.always import Always
from fedsim.system.availability.bernoulli import Bernoulli
from fedsim.system.availability.day_cycle import DayCycle
from fedsim.system.availability.trace import Trace
from fedsim.system.crowd import Crowd, Moment

ODDS = 1e-6
"""Chance that a count of a sound model is outside its bounds: with the fixed seeds here it never changes."""


def there(model: Availability, crowd: Crowd, number: int, time_s: float = 0.0) -> np.ndarray:
    return model.remaining(Moment(crowd, number, time_s)) > 0


def assert_binomial(count: int, n: int, p: float) -> None:
    low, high = binom.ppf(ODDS / 2, n, p), binom.isf(ODDS / 2, n, p)
    assert low <= count <= high


def test_always_is_everybody_for_ever() -> None:
    assert Always().certain
    assert (Always().remaining(Moment(Crowd(0, 5), 3, 1e9)) == math.inf).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_coins_fall_as_often_as_they_should_for_clients_and_for_rounds(p: float) -> None:
    crowd, model = Crowd(7, 400), Bernoulli(p=p)
    table = np.array([there(model, crowd, number) for number in range(1, 301)])
    assert_binomial(int(table.sum()), table.size, p)
    for counts in (table.sum(axis=0), table.sum(axis=1)):
        assert_binomial(int(counts.min()), table.size // len(counts), p)
        assert_binomial(int(counts.max()), table.size // len(counts), p)
    # Neighbouring rounds know nothing of each other.
    assert_binomial(int((table[1:] & table[:-1]).sum()), table[1:].size, p * p)


def test_coins_are_those_of_seed_round_and_client_alone() -> None:
    model = Bernoulli(p=0.5)
    same = there(model, Crowd(1, 200), 4, 10.0)
    assert (there(model, Crowd(1, 200), 4, 99.0) == same).all()
    assert (there(model, Crowd(1, 200), 5) != same).any()
    assert (there(model, Crowd(2, 200), 4) != same).any()


def test_probabilities_follow_a_beta_law() -> None:
    model = Bernoulli(p=0.3, concentration=4.0)
    found = np.sort(model.probabilities(Crowd(3, 4000)))
    law = beta(0.3 * 4.0, 0.7 * 4.0)
    # Kolmogorov's distance: sqrt(n) D exceeds 2.7 once in a million.
    steps = np.arange(1, 4001) / 4000
    distance = np.abs(np.maximum(steps - law.cdf(found), law.cdf(found) - steps + 1 / 4000)).max()
    assert distance < 2.7 / math.sqrt(4000)
    crowd = Crowd(3, 50)
    table = np.array([there(model, crowd, number) for number in range(1, 501)])
    for count, p in zip(table.sum(axis=0), model.probabilities(crowd), strict=True):
        assert_binomial(int(count), 500, p)


def test_some_probabilities_of_a_wide_law_are_tiny_but_none_is_zero() -> None:
    found = Bernoulli(p=0.05, concentration=0.2).probabilities(Crowd(0, 500))
    assert found.min() == 0.001
    assert found.max() > 0.9


def naive_day(phase: float, share: float, period: float, now: float) -> float:
    """Seconds left, found by looking at every day from long ago."""
    for day in range(-2, 100):
        start = phase + day * period
        if start <= now < start + share * period:
            return start + share * period - now
    return 0.0


def test_a_day_is_what_looking_at_every_day_says() -> None:
    model, crowd = DayCycle(share=0.3, period_s=1000.0), Crowd(5, 60)
    generator = np.random.default_rng(0)
    for now in generator.uniform(0, 50_000, 40):
        expected = [naive_day(phase, 0.3, 1000.0, now) for phase in model.phases(crowd)]
        np.testing.assert_allclose(model.remaining(Moment(crowd, 1, now)), expected, atol=1e-4)


def test_clients_are_there_for_their_share_of_the_day_spread_over_it() -> None:
    model, crowd = DayCycle(share=0.25, period_s=100.0), Crowd(11, 3000)
    table = np.array([there(model, crowd, 1, now) for now in np.arange(0.5, 200.0)])
    np.testing.assert_allclose(table.mean(axis=0), 0.25, atol=0.011)  # a hundred looks a day
    assert_binomial(int(table.sum(axis=1).min()), 3000, 0.25)
    assert_binomial(int(table.sum(axis=1).max()), 3000, 0.25)
    together = DayCycle(share=0.25, period_s=100.0, phase_spread=0.0)
    assert [there(together, crowd, 1, now).mean() for now in (0.0, 24.9, 25.1, 99.9, 100.0)] == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_after_the_wait_somebody_is_there_and_not_much_earlier(seed: int) -> None:
    model, crowd = DayCycle(share=0.02, period_s=86400.0), Crowd(seed, 3)
    now = float(np.random.default_rng(seed).uniform(0, 1e7))
    for _ in range(5):
        if there(model, crowd, 1, now).any():
            now += 0.02 * 86400.0
            continue
        wait = model.wait(Moment(crowd, 1, now))
        assert not there(model, crowd, 1, now + wait - 0.01).any()
        assert there(model, crowd, 1, now + wait).any()
        now += wait + 0.02 * 86400.0


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Crowd]:
    def written(text: str, num_clients: int = 4) -> Crowd:
        (tmp_path / "trace.csv").write_text(text)
        return Crowd(0, num_clients, tmp_path)

    return written


def test_a_trace_is_what_its_lines_say(write: Callable[..., Crowd]) -> None:
    text = "client,start_s,end_s,device\n0,10,20,a\n0,40,50,a\n2,15,100,b\n3,0,5,c\n3,90,100,c\n9,0,100,d\n"
    crowd = write(text)
    lines = [(0, 10, 20), (0, 40, 50), (2, 15, 100), (3, 90, 105)]
    for now in np.arange(0.25, 300.0, 0.5):
        expected = np.zeros(4)
        for client, start, end in lines:
            for day in range(-1, 4):
                if start + 100 * day <= now < end + 100 * day:
                    expected[client] = end + 100 * day - now
        found = Trace(path="trace.csv").remaining(Moment(crowd, 1, now))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_stays_that_touch_or_overlap_are_one_and_a_whole_period_has_no_end(write: Callable[..., Crowd]) -> None:
    crowd = write("client,start_s,end_s\n0,5,10\n0,0,5\n0,8,20\n1,0,60\n1,60,100\n2,0,100\n")
    found = Trace(path="trace.csv").remaining(Moment(crowd, 1, 2.0))
    np.testing.assert_allclose(found, [18.0, math.inf, math.inf, 0.0], atol=1e-4)


def test_a_longer_period_is_a_pause_and_the_wait_ends_it(write: Callable[..., Crowd]) -> None:
    crowd = write("client,start_s,end_s\n1,0,10\n2,30,40\n")
    model = Trace(path="trace.csv", period_s=1000.0)
    assert not there(model, crowd, 1, 60.0).any()
    assert model.wait(Moment(crowd, 1, 60.0)) == 940.0
    assert there(model, crowd, 1, 1000.0).tolist() == [False, True, False, False]
    assert model.wait(Moment(crowd, 1, 1010.0)) == 20.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line must name client, start_s, end_s, got nothing"),
        ("client,start\n0,1\n", "its first line must name client, start_s, end_s, got client, start"),
        ("client,start_s,end_s\n", "holds no line beside its header"),
        ("client,start_s,end_s\n0,1\n", "line 2: must have 3 fields as the first line has, got 2"),
        ("client,start_s,end_s\n\n0,1,x\n", 'line 3: end_s must be a finite number, got "x"'),
        ("client,start_s,end_s\n0,1,inf\n", 'line 2: end_s must be a finite number, got "inf"'),
        ("client,start_s,end_s\n0.5,1,2\n", "line 2: client must be a whole number from 0, got 0.5"),
        ("client,start_s,end_s\n-1,1,2\n", "line 2: client must be a whole number from 0, got -1"),
        ("client,start_s,end_s\n0,2,2\n", "line 2: must have 0 <= start_s < end_s <= 2, the period, got 2 and 2"),
        ("client,start_s,end_s\n7,1,2\n", "names none of the clients 0 to 3"),
    ],
)
def test_a_malformed_trace_is_refused_by_its_line(text: str, said: str, write: Callable[..., Crowd]) -> None:
    crowd = write(text)
    with pytest.raises(DataError) as caught:
        Trace(path="trace.csv").remaining(Moment(crowd, 1, 0.0))
    assert said in str(caught.value)
    assert "trace.csv" in str(caught.value)


def test_a_trace_that_changes_is_read_again_and_one_that_is_not_there_is_said(write: Callable[..., Crowd]) -> None:
    crowd = write("client,start_s,end_s\n1,0,10\n2,30,40\n")
    assert there(Trace(path="trace.csv"), crowd, 1).tolist() == [False, True, False, False]
    write("client,start_s,end_s\n0,0,10.5\n2,30,40\n")
    assert there(Trace(path="trace.csv"), crowd, 1).tolist() == [True, False, False, False]
    with pytest.raises(DataError, match=r"no\.csv: cannot be read: No such file.*relative to the data root"):
        Trace(path="no.csv").remaining(Moment(crowd, 1, 0.0))
    (crowd.root / "bytes.csv").write_bytes(b"client,\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.csv: cannot be read as text"):
        Trace(path="bytes.csv").remaining(Moment(crowd, 1, 0.0))
    with pytest.raises(DataError, match="<= 20, the period, got 30 and 40"):
        Trace(path="trace.csv", period_s=20.0).remaining(Moment(crowd, 1, 0.0))
