"""Pools: every order is answered, whoever dies and whatever is raised; nobody is left when it is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.engine.pool import Finished, LocalPool, Lost, RayPool, Said
from fedsim.errors import EngineError
from fedsim.settings import EngineSettings
from tests.processes import gone

Order = dict[str, Any]


def work(order: Order, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Do as an order says: say things, wait for a file, raise, or kill this process."""
    for word in order.get("say", ()):
        tell(word)
    if "ready" in order:
        (Path(order["ready"]) / str(os.getpid())).touch()
    if "wait" in order:
        _appears(Path(order["wait"]))
    if order.get("raise"):
        raise ZeroDivisionError("nobody thought of this")
    if "kill" in order:
        marks = Path(order["kill"])
        if len(list(marks.iterdir())) < order["deaths"]:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if "then" in order:
        Path(order["then"]).touch()
    return {"name": order["name"], "pid": os.getpid(), "threads": torch.get_num_threads()}


def _appears(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(str(path))
        time.sleep(0.01)


def nobody(said: Said[Order]) -> None:
    raise AssertionError(said)


def results(events: Any) -> dict[str, Any]:
    """Return name -> result of orders that were finished; there must be no other events."""
    found = list(events)
    assert all(isinstance(event, Finished) for event in found)
    assert all(event.result["name"] == event.order["name"] for event in found)
    return {event.order["name"]: event.result for event in found}


class TestLocal:
    def test_one_after_the_other_in_this_process(self) -> None:
        said: list[tuple[str, Any]] = []
        orders = [{"name": "a", "say": [1, 2]}, {"name": "b"}, {"name": "c", "say": [3]}]
        found = LocalPool(work).run(orders, lambda each: said.append((each.order["name"], each.what)))
        assert list(results(found)) == ["a", "b", "c"]
        assert said == [("a", 1), ("a", 2), ("c", 3)]

    def test_it_begins_an_order_when_it_is_asked_for(self, tmp_path: Path) -> None:
        found = LocalPool(work).run([{"name": str(i), "then": tmp_path / str(i)} for i in range(2)], nobody)
        next(found)
        assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestRay:
    @pytest.fixture(scope="class")
    @staticmethod
    def pool() -> Iterator[RayPool]:
        opened = RayPool(work, EngineSettings(workers=2, threads_per_worker=2), 99)
        yield opened
        opened.close()

    def test_results_come_as_they_are_ready(self, pool: RayPool, tmp_path: Path) -> None:
        """The first order ends only after the last has: the other worker does the rest meanwhile."""
        end = tmp_path / "end"
        orders: list[Order] = [
            {"name": "first", "wait": end},
            *({"name": str(i)} for i in range(4)),
            {"name": "last", "then": end},
        ]
        found = results(pool.run(orders, nobody))
        assert list(found) == ["0", "1", "2", "3", "last", "first"]
        assert {found[name]["pid"] for name in ("0", "1", "2", "3", "last")} == {found["0"]["pid"]}
        assert found["first"]["pid"] != found["0"]["pid"]
        assert os.getpid() not in {each["pid"] for each in found.values()}

    def test_each_has_the_threads_that_were_asked_for(self, pool: RayPool) -> None:
        assert {each["threads"] for each in results(pool.run([{"name": "a"}, {"name": "b"}], nobody)).values()} == {
            2
        }

    def test_what_is_said_is_heard_in_order_and_before_the_result(self, pool: RayPool) -> None:
        heard: dict[str, list[int]] = {"a": [], "b": []}
        orders = [{"name": "a", "say": list(range(9))}, {"name": "b", "say": [7]}]
        for event in pool.run(orders, lambda said: heard[said.order["name"]].append(said.what)):
            assert isinstance(event, Finished)
            assert heard[event.order["name"]] == event.order["say"]

    def test_an_order_that_raises_is_lost_and_its_worker_lives(self, pool: RayPool) -> None:
        before = {each["pid"] for each in results(pool.run([{"name": "a"}, {"name": "b"}], nobody)).values()}
        events = list(pool.run([{"name": "bad", "raise": True}, {"name": "c"}, {"name": "d"}], nobody))
        (lost,) = [event for event in events if isinstance(event, Lost)]
        assert (lost.order["name"], lost.again) == ("bad", False)
        assert "nobody thought of this" in lost.cause
        assert len(events) == 3
        after = {each["pid"] for each in results(pool.run([{"name": str(i)} for i in range(4)], nobody)).values()}
        assert after <= before

    @pytest.mark.parametrize("deaths", [1, 3])
    def test_the_order_of_a_dead_worker_is_tried_once_more(
        self, pool: RayPool, tmp_path: Path, deaths: int
    ) -> None:
        orders: list[Order] = [{"name": "a"}, {"name": "deadly", "kill": tmp_path, "deaths": deaths}, {"name": "b"}]
        events = list(pool.run(orders, nobody))
        of_it = [event for event in events if event.order["name"] == "deadly"]
        assert [getattr(event, "again", None) for event in of_it] == (
            [True, None] if deaths == 1 else [True, False]
        )
        assert {event.order["name"] for event in events if isinstance(event, Finished)} >= {"a", "b"}
        died = {int(path.name) for path in tmp_path.iterdir()}
        assert len(died) == min(deaths, 2)
        # There are as many workers as before.
        end = tmp_path.with_name("end")
        found = results(pool.run([{"name": "first", "wait": end}, {"name": "last", "then": end}], nobody))
        assert not {each["pid"] for each in found.values()} & died

    def test_no_more_workers_than_orders(self) -> None:
        few = RayPool(work, EngineSettings(workers=3), 1)
        try:
            assert few.num_workers == 1
            found = results(few.run([{"name": "a"}, {"name": "b"}], nobody))
            assert len({each["pid"] for each in found.values()}) == 1
        finally:
            few.close()

    def test_more_workers_than_there_is_room_for(self) -> None:
        with pytest.raises(EngineError, match="has room for"):
            RayPool(work, EngineSettings(workers=999), 999)

    def test_close_ends_workers_that_are_in_the_middle_of_something(self, tmp_path: Path) -> None:
        """Interrupted, and begun again at once: nobody of before may still be writing. A Ray of others goes on."""
        import ray

        opened = RayPool(work, EngineSettings(workers=1), 1)
        events = opened.run(
            [{"name": "endless", "say": ["begun"], "ready": tmp_path, "wait": tmp_path / "never"}], _stop
        )
        with pytest.raises(KeyboardInterrupt):
            next(events)
        (pid,) = [int(path.name) for path in _present(tmp_path)]
        opened.close()
        assert gone(pid, 30.0)
        assert ray.is_initialized()


def _stop(said: Said[Order]) -> None:
    raise KeyboardInterrupt


def _present(folder: Path) -> list[Path]:
    deadline = time.monotonic() + 60
    while not (found := list(folder.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
