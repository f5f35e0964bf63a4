"""The fixed rules of the house: who may import whom, and what every public name says about itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("fedsim", "clients", "strategies")
FILES = [*sorted(file for package in PACKAGES for file in (HOME / package).rglob("*.py")), HOME / "run_sim.py"]
NAMES = [file.relative_to(HOME).as_posix() for file in FILES]

ALLOWED = {
    "ray": ("fedsim/engine/",),
    "flwr": (
        "fedsim/engine/",
        "fedsim/wire.py",
        "fedsim/rounds.py",
        "fedsim/run_folder.py",  # the model of a Round is a record
        "fedsim/server_app.py",
        "clients/app.py",
        "clients/client_app.py",
        "strategies/flower.py",
        "strategies/seeded.py",
        "strategies/stock.py",
        "strategies/stock_options.py",
    ),
    "flwr_datasets": ("fedsim/partitions/",),
    "datasets": ("fedsim/partitions/",),
    "typer": ("run_sim.py",),
    "rich": ("fedsim/profile.py", "fedsim/simulation.py", "fedsim/study/", "run_sim.py"),
    "pandas": (
        "fedsim/run_folder.py",
        "fedsim/report/",
        "fedsim/study/",
        "fedsim/study_report/",
        "fedsim/frames.py",
        "fedsim/datasets/heart.py",
    ),
    "matplotlib": ("fedsim/report/", "fedsim/study_report/"),
    "mlflow": ("fedsim/sinks/mlflow.py",),
    "wandb": ("fedsim/sinks/wandb.py",),
}
"""Package -> where it may be imported."""

CORE = (
    "clients.training",
    "clients.steps",
    "clients.stacked",
    "clients.traced",
    "clients.objective",
    "clients.batches",
    "clients.cohort",
    "clients.evaluation",
    "clients.quasi_newton",
    "clients.methods.*",
    "clients.hooks.*",
    "strategies.kernel",
    "strategies.solvers",
    "strategies.certificate",
    "strategies.curvature",
    "strategies.rules.*",
    "fedsim.models.*",
    "fedsim.metrics.*",
    "fedsim.datasets.*",
    "fedsim.parameters",
    "fedsim.seeds",
    "fedsim.plugins",
    "fedsim.errors",
    "fedsim.fairness",
    "fedsim.system.*",
    "fedsim.statistics.*",
)
"""The training core: it runs, and can be measured, on a machine that has only PyTorch."""


def imports(file: Path, *, typing_too: bool = True) -> Iterator[str]:
    """Every module a file imports, wherever in the file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                skipped |= {inner for child in node.body for inner in ast.walk(child)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 40
    assert {"fedsim/wire.py", "clients/app.py", "strategies/rules/adafed.py"} <= set(NAMES)


@pytest.mark.parametrize("package", ALLOWED)
def test_only_these_places_import(package: str) -> None:
    found = {
        name
        for name, file in zip(NAMES, FILES, strict=True)
        if any(i.split(".")[0] == package for i in imports(file))
    }
    outside = {name for name in found if not name.startswith(ALLOWED[package])}
    assert not outside
    assert found, f"nobody imports {package} any more: this rule can go"


def test_flower_is_imported_from_its_public_modules_only() -> None:
    public = ("flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.serverapp.strategy")
    found = {
        (name, module)
        for name, file in zip(NAMES, FILES, strict=True)
        for module in imports(file)
        if module.split(".")[0] == "flwr" and module not in public
    }
    assert {name for name, _ in found} == {"fedsim/engine/flower.py"}, found


def test_rules_and_training_see_their_own_base_types_only() -> None:
    allowed = {
        "strategies/rules/": (
            "strategies.rules",
            "strategies.kernel",
            "strategies.solvers",
            "clients.methods",
            "strategies.certificate",
            "strategies.curvature",
            "fedsim.plugins",
        ),
        "clients/methods/": ("clients.methods",),
        "fedsim/models/": ("fedsim.models", "fedsim.plugins", "fedsim.seeds", "fedsim.errors"),
        "fedsim/metrics/": ("fedsim.metrics", "fedsim.plugins"),
        "fedsim/datasets/": ("fedsim.datasets", "fedsim.plugins", "fedsim.seeds", "fedsim.errors"),
        "fedsim/statistics/": ("fedsim.statistics", "fedsim.fairness"),
        "fedsim/system/": ("fedsim.system", "fedsim.plugins", "fedsim.seeds", "fedsim.errors", "clients.batches"),
        "clients/training.py": ("clients", "fedsim.datasets", "fedsim.parameters"),
        "clients/evaluation.py": ("fedsim.datasets", "fedsim.metrics", "fedsim.models", "fedsim.parameters"),
    }
    for place, modules in allowed.items():
        for name, file in zip(NAMES, FILES, strict=True):
            if not name.startswith(place):
                continue
            ours = {
                m for m in imports(file, typing_too=False) if m.split(".")[0] in ("fedsim", "strategies", "clients")
            }
            if place == "strategies/rules/":
                ours.discard("strategies")  # `from strategies import kernel`
            beyond = {m for m in ours if not any(m == known or m.startswith(f"{known}.") for known in modules)}
            assert beyond <= {"fedsim"}, f"{name} imports {beyond}"  # `from fedsim import seeds`


def test_the_training_core_loads_neither_flower_nor_ray() -> None:
    code = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package, star, _ = name.partition(".*")
    module = importlib.import_module(package)
    if star:
        for info in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{package}.{info.name}")
heavy = {"flwr", "ray", "flwr_datasets", "datasets", "typer", "matplotlib"}
print(sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *CORE], cwd=HOME, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is(name: str) -> None:
    tree = ast.parse((HOME / name).read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), f"{name} has no docstring"

    def silent(body: list[ast.stmt], path: str) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith(
                "_"
            ):
                continue
            sets = any(ast.unparse(mark).endswith(".setter") for mark in node.decorator_list)
            if not ast.get_docstring(node) and not sets:
                yield f"{path}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from silent(node.body, f"{path}{node.name}.")

    assert list(silent(tree.body, "")) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_can_be_read_in_one_sitting(name: str) -> None:
    assert len((HOME / name).read_text(encoding="utf-8").splitlines()) <= 450
