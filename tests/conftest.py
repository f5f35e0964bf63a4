"""Real data for tests live outside the repository; a test that needs them is skipped with a reason."""

from __future__ import annotations

import gc
import os
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # Flower imports typer, which reads two names that click has deprecated.
    warnings.filterwarnings("ignore", r"'click\.utils\.get_\w+_stream' is deprecated", DeprecationWarning)
    import typer  # noqa: F401

_IMAGES_PER_CLASS = 12


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: FEDSIM_TEST_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDSIM_TEST_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"skipped a check on real data: no folder {folder}; set FEDSIM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def data_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the two text files and MNIST in torchvision's layout."""
    root = tmp_path_factory.mktemp("data")
    for name in ("heart_disease_uci.csv", "shakespeare.txt"):
        (root / name).symlink_to(_needed(shared_data / name))
    if (shared_data / "MNIST").is_dir():
        (root / "MNIST").symlink_to(shared_data / "MNIST")
    else:
        with tarfile.open(_needed(shared_data / "mnist.tar.xz")) as archive:
            archive.extractall(root, filter="data")
    return root


@pytest.fixture(scope="session")
def cifar_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the first test images of each class of CIFAR-10, as class folders in cifar10/test."""
    root = tmp_path_factory.mktemp("cifar")
    if (shared_data / "cifar10").is_dir():
        for source in (shared_data / "cifar10").glob("test/*/00*.jpg"):
            if int(source.stem) < _IMAGES_PER_CLASS:
                target = root / source.relative_to(shared_data)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
        return root
    left = 10 * _IMAGES_PER_CLASS
    with tarfile.open(_needed(shared_data / "cifar10.tar.xz"), "r|xz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parts[1] == "test" and int(path.stem) < _IMAGES_PER_CLASS:
                archive.extract(member, root, filter="data")
                left -= 1
            if left == 0:
                break  # the rest of the archive is five times as long
    return root


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that need it, as a user's program might have started it before us."""
    import ray

    from fedsim.engine.cluster import WORKER_ENV

    added = {**WORKER_ENV, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    # Cores as Ray counts them: room for every grid that is open at once, whatever the machine has.
    with _unclosed_files_forgiven():
        ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, namespace="tests")
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    yield
    with _unclosed_files_forgiven():
        ray.shutdown()


@contextmanager
def _unclosed_files_forgiven() -> Iterator[None]:
    """Ray opens /dev/null for each process it starts and leaves closing it to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def _needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"skipped a check on real data: no file {path}")
    return path
