"""What is wrong with a hook is said before a run, by the hook's name."""

from __future__ import annotations

from typing import Any

import pytest

from clients.app import LocalApp, alone
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation

HERE = "tests.clients.hooks.outside"


def scenario(*hooks: str, **client: Any) -> Scenario:
    return Scenario.of(
        {
            "name": "trial",
            "rounds": 1,
            "data": {"name": "digits", "limit": 600},
            "partition": {"name": "iid", "num_clients": 40},
            "model": {"name": "logistic"},
            "client": {"hooks": list(hooks), **client},
            "strategy": {"name": "fedavg"},
        }
    )


@pytest.fixture(scope="module")
def federation() -> Federation:
    return build_federation(scenario())


@pytest.mark.parametrize("cohort", ["each", "stacked", "auto"])
@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (f"{HERE}:Matrix", r"loss of hook .*Matrix must return one number for each example, \[3\], got \[3, 1\]"),
        (f"{HERE}:Broken", "a first step on a few examples failed with KeyError: 'lost'"),
    ],
)
def test_a_hook_that_fails_is_named(hook: str, said: str, cohort: str, federation: Federation) -> None:
    app = LocalApp(scenario("proximal", hook, cohort=cohort), federation)
    with pytest.raises(ScenarioError, match=f"client.hooks.{hook}: {said}"):
        app.check()


def test_a_hook_that_cannot_be_mapped_is_for_one_client_after_the_other(federation: Federation) -> None:
    hook = f"{HERE}:Branching"
    assert LocalApp(scenario(), federation).scenario.client.cohort == "stacked"
    found = LocalApp(scenario("proximal", hook), federation)
    assert found.scenario.client.cohort == "each"
    found.check()
    said = rf"torch.func cannot map hook {hook} over clients: it calls \.item\(\) or branches on data"
    for size in ({}, {"block_size": 4}):
        with pytest.raises(ScenarioError, match=said):
            LocalApp(scenario(hook, cohort="stacked", **size), federation)


def test_where_every_client_is_a_process_of_its_own_there_is_no_block(federation: Federation) -> None:
    assert alone(scenario(), federation).scenario.client.cohort == "each"
    assert alone(scenario(cohort="stacked"), federation).scenario.client.cohort == "stacked"
