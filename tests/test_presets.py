"""The scenarios that come with fedsim: what papers say, written down a second time; studies and expectations."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch

from fedsim.datasets import Dataset, RawData, Split
from fedsim.fairness import CONVENTIONS
from fedsim.federation import Federation
from fedsim.scenario import Scenario, layered
from fedsim.simulation import simulate
from fedsim.study import tuning
from fedsim.study.design import Design
from tests.datasets import samples

HOME = Path(__file__).resolve().parents[1]
FILES = {file.stem: file for file in sorted(HOME.glob("scenarios/*.toml"))}
STUDIES = [name for name in FILES if "scenarios" in layered(FILES[name]).get("study", {})]
SCENARIOS = [name for name in FILES if name not in STUDIES]
PAPER = [name for name in SCENARIOS if layered(FILES[name]).get("tier") == "paper"]

# What the sources say: data, partition (and its options), model, clients a round, rounds, epochs, batch, lr, decay.
PAT1 = ("pathological", {"num_clients": 100, "classes_per_client": 1, "assignment": "blocks"})
PAT2 = ("pathological", {"num_clients": 100, "classes_per_client": 2, "assignment": "blocks"})
DIR = ("dirichlet", {"num_clients": 100, "alpha": 0.1, "min_size": 10, "self_balancing": True})
NORMAL = ("shards", {"num_clients": 100, "shards_per_client": 2})
MUTEX = ("shards", {"num_clients": 10, "shards_per_client": 1})
CNN, MLP = ("cnn_wide", {"dropout": (0.2, 0.5)}), ("mlp", {"hidden": (200, 200)})
SETTINGS: dict[str, tuple[Any, ...]] = {
    "paper_fedlf_cifar10_pat1": ("cifar10", PAT1, CNN, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedlf_cifar10_pat2": ("cifar10", PAT2, CNN, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedlf_cifar10_dir": ("cifar10", DIR, CNN, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedlf_fashion_pat1": ("fashion_mnist", PAT1, MLP, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedlf_fashion_pat2": ("fashion_mnist", PAT2, MLP, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedlf_fashion_dir": ("fashion_mnist", DIR, MLP, 10, 3000, 1, 50, 0.1, 0.999),
    "paper_fedmdfg_cifar10_normal": ("cifar10", NORMAL, CNN, 10, 2000, 1, 50, 0.1, 0.999),
    "paper_fedmdfg_cifar10_mutex": ("cifar10", MUTEX, CNN, 5, 2000, 1, 50, 0.1, 0.999),
    "paper_fedmdfg_fashion_normal": ("fashion_mnist", NORMAL, MLP, 10, 2000, 1, 50, 0.1, 0.999),
    "paper_fedmdfg_fashion_mutex": ("fashion_mnist", MUTEX, MLP, 5, 2000, 1, 50, 0.1, 0.999),
    "paper_fedfv_cifar10_shards": ("cifar10", NORMAL, MLP, 10, 2000, 1, 50, 0.1, 0.999),
    "paper_adafed_cifar10_shards": ("cifar10", NORMAL, MLP, 10, 2000, 1, 50, 0.1, 0.999),
    "paper_adafed_cifar10_resnet": (
        "cifar10",
        ("dirichlet", {"num_clients": 10, "alpha": 0.5}),
        ("resnet18_gn", {}),
        None,
        100,
        1,
        64,
        0.05,
        1.0,
    ),
    "paper_afl_fashion": (
        "fashion_mnist",
        ("pathological", {"num_clients": 3, "classes_per_client": 1}),
        ("logistic", {}),
        None,
        6000,
        0,
        32,
        0.1,
        1.0,
    ),
    "paper_qffl_shakespeare": (
        "shakespeare",
        ("natural", {"min_examples": 64}),
        ("char_lstm", {"embedding": 8, "hidden": 256, "layers": 2}),
        10,
        80,
        1,
        10,
        0.8,
        1.0,
    ),
    "paper_fedit_cifar10_dir03": (
        "cifar10",
        ("dirichlet", {"num_clients": 100, "alpha": 0.3}),
        ("cnn_wide", {"dropout": (0.0, 0.0)}),
        10,
        200,
        5,
        64,
        0.01,
        0.99,
    ),
    "paper_fedit_cifar10_dir1": (
        "cifar10",
        ("dirichlet", {"num_clients": 100, "alpha": 1.0}),
        ("cnn_wide", {"dropout": (0.0, 0.0)}),
        10,
        200,
        5,
        64,
        0.01,
        0.99,
    ),
}

# FedLF, Table 1: mean accuracy and angle in rad, of Dir(0.1), Pat-1, Pat-2 on Fashion-MNIST, then on CIFAR-10.
FEDLF_COLUMNS = [
    f"paper_fedlf_{data}_{kind}" for data in ("fashion", "cifar10") for kind in ("dir", "pat1", "pat2")
]
FEDLF = {
    "fedavg": ".861 .116 .828 .170 .838 .135 .690 .214 .575 .341 .681 .276",
    "qfedavg": ".847 .133 .831 .161 .813 .118 .681 .204 .565 .301 .661 .267",
    "afl": ".865 .109 .829 .204 .854 .137 .679 .201 .561 .251 .685 .202",
    "fedfv": ".850 .132 .836 .165 .853 .135 .682 .208 .568 .376 .681 .204",
    "fedmgda_plus": ".809 .161 .750 .305 .815 .221 .531 .264 .440 .314 .569 .282",
    "fedmdfg": ".873 .089 .863 .101 .874 .084 .729 .176 .744 .142 .714 .153",
    "fedlf": ".892 .084 .894 .089 .898 .074 .766 .140 .765 .126 .761 .127",
}
# FedMDFG, appendix, normal case: accuracy, angle in rad, deviation, smallest and largest accuracy of a client.
FEDMDFG = {
    "paper_fedmdfg_cifar10_normal": {
        "fedavg": ".683 .202 .137 .300 .870",
        "afl": ".689 .139 .096 .460 .880",
        "qfedavg[q=0.1]": ".667 .174 .117 .350 .860",
        "qfedavg[q=1]": ".595 .161 .097",
        "qfedavg[q=5]": ".446 .182 .082",
        "fedfv": ".684 .177 .122 .330 .890",
        "term[t=1]": ".529 .176 .094",
        "term[t=5]": ".520 .156 .082",
        "fedmgda_plus": ".507 .201 .103",
        "fedmdfg": ".743 .103 .077 .580 .890",
    },
    "paper_fedmdfg_fashion_normal": {
        "fedavg": ".850 .108 .092",
        "afl": ".842 .128 .108",
        "qfedavg[q=0.1]": ".848 .111 .095",
        "fedmgda_plus": ".795 .164 .132",
        "term[t=5]": ".806 .103 .083",
        "fedmdfg": ".876 .077 .068",
    },
}


def published(name: str) -> dict[tuple[str, str], float]:
    """Return what a source says comes out, angles in degrees."""
    found = {}
    if name in FEDLF_COLUMNS:
        place = 2 * FEDLF_COLUMNS.index(name)
        for method, row in FEDLF.items():
            for measure, value in zip(("mean", "angle_deg"), row.split()[place : place + 2], strict=True):
                found[method, measure] = float(value)
    for method, row in FEDMDFG.get(name, {}).items():
        for measure, value in zip(("mean", "angle_deg", "std", "min", "max"), row.split(), strict=False):
            found[method, measure] = float(value)
    return {
        (method, measure): math.degrees(value) if measure == "angle_deg" else value
        for (method, measure), value in found.items()
    }


def test_the_table_of_settings_has_every_paper_preset() -> None:
    assert set(SETTINGS) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_has_the_settings_of_its_source(name: str) -> None:
    data, (partition, divided), (model, built), sampled, rounds, epochs, batch, lr, decay = SETTINGS[name]
    scenario = Scenario.load(FILES[name])
    assert (scenario.data.plugin_name, scenario.partition.plugin_name) == (data, partition)
    assert {option: getattr(scenario.partition, option) for option in divided} == divided
    assert scenario.model.plugin_name == model
    assert {option: getattr(scenario.model, option) for option in built} == built
    client = scenario.client
    assert (client.local_epochs, client.batch_size, client.lr, client.lr_decay) == (epochs, batch, lr, decay)
    assert (scenario.server.clients_per_round, scenario.rounds) == (sampled, rounds)
    assert scenario.study is not None
    assert scenario.study.seeds == (0, 1, 2, 3, 4)


def test_fed_it_has_its_clients_loss() -> None:
    client = Scenario.load("paper_fedit_cifar10_dir1").client
    assert (client.momentum, client.weight_decay, client.clip_norm) == (0.9, 1e-5, 10.0)
    (hook,) = client.hooks
    assert hook.model_dump() == {
        "centroids": "ema",
        "decay": 0.9999,
        "lam": 0.9,
        "smooth_weight": 0.07,
        "smoothing": 0.3,
    }


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith(("paper_fedlf", "paper_fedmdfg"))])
def test_fedlf_and_fedmdfg_have_the_options_of_their_code(name: str) -> None:
    design = Design.load(FILES[name])
    made = {method.label: design.bases[0].with_method(method, design.pairs[0]) for method in design.methods}
    for label in {"fedmdfg", "fedlf"} & set(
        made
    ):  # gradients of whole shards, and the learning rate is the server's
        assert made[label].client.local_epochs == 0
    for label in {"fedmdfg", "fedlf", "fedmgda_plus"} & set(made):
        assert (made[label].server.lr, made[label].server.lr_decay) == (0.1, 0.999)
    assert made["fedmdfg"].strategy.model_dump(include={"theta_deg", "halvings", "rising"}) == {
        "theta_deg": 11.25,
        "halvings": 5,
        "rising": True,
    }
    assert made["afl"].server.average == "all"
    assert made["afl"].strategy.model_dump()["lambda_lr"] == 0.1
    assert made["fedfv"].strategy.model_dump(include={"alpha", "tau"}) == {"alpha": 0.1, "tau": 1}
    assert made["fedmgda_plus"].strategy.model_dump()["epsilon"] == 0.1
    # Every method has three learning rates to choose from, and nothing else.
    plan = tuning.plan(design)
    assert plan is not None
    assert plan.budget == 3
    for label, grid in plan.grids.items():
        key = "server.lr" if label in ("fedmdfg", "fedlf", "fedmgda_plus") else "client.lr"
        assert grid == {key: (0.01, 0.05, 0.1)}


@pytest.mark.parametrize("name", FILES)
def test_every_preset_has_a_tier_and_a_study_that_can_be_run(name: str) -> None:
    table = layered(FILES[name])
    assert table["tier"] == ("paper" if name.startswith("paper_") else "smoke")
    assert not table.get("description", "").endswith("\n")
    assert table["study"]["seeds"] == 5
    design = Design.load(FILES[name])  # which resolves every method
    assert design.tier == table["tier"]
    plan = tuning.plan(design)
    assert (plan is not None) == ("tune" in table["study"])


def test_a_study_that_says_nothing_of_seeds_has_five() -> None:
    silent = Scenario.load("quickstart").table()
    del silent["study"]["seeds"]
    study = Scenario.of(silent).study
    assert study is not None
    assert study.seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("name", SCENARIOS)
def test_expectations_are_of_methods_and_measures_there_are(name: str) -> None:
    expected = layered(FILES[name]).get("expect", {})
    labels = [method.label for method in Design.load(FILES[name]).methods]
    for label, measures in expected.items():
        assert label in labels
        for measure, entry in measures.items():
            assert measure in CONVENTIONS
            assert "tolerance" in entry["source"]
            assert entry["within"] > 0


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_expects_what_was_read_in_its_source_and_nothing_else(name: str) -> None:
    expected = layered(FILES[name]).get("expect", {})
    found = {(label, measure): entry["value"] for label in expected for measure, entry in expected[label].items()}
    assert found == pytest.approx(published(name), abs=0.005)
    if "memory" in FILES[name].read_text(encoding="utf-8") + (layered(FILES[name]).get("description") or ""):
        assert not found


def test_published_tables_are_all_there() -> None:
    assert {name for name in PAPER if published(name)} == {*FEDLF_COLUMNS, *FEDMDFG}


def test_a_smoke_preset_expects_what_was_measured_here() -> None:
    for name in SCENARIOS:
        if name in PAPER:
            continue
        for measures in layered(FILES[name]).get("expect", {}).values():
            for entry in measures.values():
                assert "seeds" in entry["source"]
                assert "commit" in entry["source"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_of_scenarios_of_its_tier(name: str) -> None:
    table = tomllib.loads(FILES[name].read_text(encoding="utf-8"))
    for other in table["study"]["scenarios"]:
        assert layered(FILES[other])["tier"] == table["tier"]


def test_the_page_of_presets_has_every_one() -> None:
    page = (HOME / "docs" / "presets.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}`" not in page] == []


@final
class Counted(Dataset):
    """As many examples of each class as the official halves of a data set have together."""

    num_classes: int = 10
    per_class: int = 6000

    def load(self, root: Path) -> RawData:
        del root
        y = torch.arange(self.num_classes).repeat(self.per_class)
        return RawData(
            Split(torch.zeros(len(y), 1), y), None, self.num_classes, tuple(map(str, range(self.num_classes)))
        )


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("paper_fedlf_cifar10_pat1", 500, 100, 1),
        ("paper_fedlf_cifar10_pat2", 500, 100, 2),
        ("paper_fedlf_fashion_pat1", 600, 100, 1),
        ("paper_fedlf_fashion_pat2", 600, 100, 2),
        ("paper_fedmdfg_cifar10_normal", 500, 100, 2),
        ("paper_fedmdfg_cifar10_mutex", 5000, 1000, 1),
        ("paper_fedmdfg_fashion_normal", 600, 100, 2),
        ("paper_fedmdfg_fashion_mutex", 6000, 1000, 1),
        ("paper_afl_fashion", 6000, 1000, 1),
    ],
)
def test_clients_have_as_many_examples_as_in_the_paper(name: str, train: int, test: int, classes: int) -> None:
    scenario = Scenario.load(FILES[name])
    assert scenario.data.pool_test
    kept = scenario.data.classes
    data = Counted(num_classes=len(kept or range(10)), per_class=7000 if "fashion" in name else 6000)
    federation = Federation.build(data, scenario.partition, 0, HOME)
    assert set(federation.train_sizes.tolist()) == {train}
    assert set(federation.test_sizes.tolist()) == {test}
    for client in range(federation.num_clients):
        owned = federation.client(client)
        assert len(torch.unique(owned.train.y)) <= classes
        assert torch.isin(owned.test.y, owned.train.y).all()


@pytest.mark.parametrize("name", ["paper_fedlf_cifar10_dir", "paper_fedit_cifar10_dir03"])
def test_dirichlet_divisions_are_found_for_every_seed(name: str) -> None:
    scenario = Scenario.load(FILES[name])
    data = Counted(per_class=6000 if scenario.data.pool_test else 5000)
    for seed in range(5):
        federation = Federation.build(data, scenario.partition, seed, HOME)
        sizes = federation.train_sizes + federation.test_sizes
        assert len(sizes) == 100
        assert sizes.min() >= 10
        assert sizes.sum() == 10 * data.per_class


def test_afl_s_three_classes_are_one_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole preset on a small file in Fashion-MNIST's format."""
    samples.write_fashion_mnist(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    folder = simulate(
        "paper_afl_fashion",
        ["rounds=2", "evaluation.every=2", "engine.backend=local", "data.download=false"],
        tmp_path / "run",
    )
    manifest = tomllib.loads((folder / "scenario.toml").read_text(encoding="utf-8"))["data"]
    assert manifest["classes"] == [0, 2, 6]
    import json

    found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert found["class_names"] == ["T-shirt/top", "Pullover", "Shirt"]
    counts = np.array([client["train"] for client in found["clients"]])
    assert (counts > 0).tolist() == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("label", ["fedavg", "fedmdfg", "fedlf"])
def test_fedlf_s_preset_runs_with_dropout_and_gradients(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small file in CIFAR-10's format, with fewer clients."""
    samples.write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    method = next(m for m in Design.load("paper_fedlf_cifar10_pat2").methods if m.label == label)
    changes = [f"strategy.name={method.strategy}", *method.changes, "partition.num_clients=5", "rounds=1"]
    more = ["server.clients_per_round=2", "engine.backend=local", "data.download=false"]
    folder = simulate("paper_fedlf_cifar10_pat2", [*changes, *more], tmp_path / "run")
    assert (folder / "summary.json").is_file()
