"""The doctor, with the faults it is for: each gives its line, and the exit code says whether something failed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedsim import doctor
from fedsim.doctor import Finding, machine, packages
from tests.datasets import samples

HOME = Path(__file__).resolve().parents[1]
GIB = 2**30


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for remembered in (packages._torch, packages._declared):
        remembered.cache_clear()
    yield
    for remembered in (packages._torch, packages._declared):
        remembered.cache_clear()


class Fakes:
    """A folder of modules that are found before the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def module(self, name: str, code: str) -> None:
        path = self.folder.joinpath(*name.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(code)

    def version(self, package: str, version: str) -> None:
        info = self.folder / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "fakes")
    monkeypatch.syspath_prepend(made.folder)
    return made


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


FINE = "__version__ = '2.15.0'\n"
TORCH = (
    FINE
    + """
class Matrix:
    def __matmul__(self, other): return self
    def sum(self): return 8.0
def ones(*shape): return Matrix()
class version: cuda = {cuda!r}
"""
)


class TestPackages:
    def test_a_sound_pair(self) -> None:
        assert [finding.level for finding in packages.torch_pair()] == ["ok", "ok"]

    def test_torch_that_cannot_be_imported(self, fakes: Fakes) -> None:
        fakes.module("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
        torch, vision = packages.torch_pair()
        assert (torch.level, vision.level) == ("fail", "fail")
        assert "libcudart.so.13: cannot open shared object file" in torch.found
        assert "from one index" in torch.do
        assert only(packages.gpu()).level == "warn"
        assert only(packages.datasets(Path("nowhere"))).found == "not looked at: PyTorch cannot be imported"

    def test_torch_that_kills_its_process(self, fakes: Fakes) -> None:
        fakes.module("torch", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert "was killed by SIGSEGV" in next(packages.torch_pair()).found

    def test_torchvision_built_for_another_torch(self, fakes: Fakes) -> None:
        fakes.module("torch", TORCH.format(cuda="13.2") + "def tensor(values): return values\n")
        fakes.version("torch", "2.15.0+cu132")
        fakes.module("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
        fakes.version("torchvision", "0.29.2+cpu")
        torch, vision = packages.torch_pair()
        assert torch.level == "ok"
        assert vision.level == "fail"
        assert "torchvision::nms does not exist" in vision.found
        assert "torch is the build cu132, torchvision the build cpu" in vision.found
        assert "as one pair" in vision.do

    def test_operators_that_compute_nonsense(self, fakes: Fakes) -> None:
        fakes.module("torch", TORCH.format(cuda=None) + "def tensor(values): return values\n")
        fakes.module("torchvision", "__version__ = '1'")
        nms = "class All(list):\n    tolist = lambda self: [0, 1, 2]\ndef nms(*_): return All()\n"
        fakes.module("torchvision.ops", nms)
        assert "kept [0, 1, 2], not [0, 2]" in list(packages.torch_pair())[1].found

    def test_a_gpu_that_torch_is_not_built_for(self, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes.module("torch", TORCH.format(cuda=None))
        monkeypatch.setattr(packages, "driver_seen", lambda: "NVIDIA 590.1")
        finding = only(packages.gpu())
        assert finding.level == "warn"
        assert "a driver (NVIDIA 590.1), but torch 2.15.0 is built without CUDA" in finding.found

    CUDA = """
class cuda:
    init = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda number: "Tesla T4")
    mem_get_info = staticmethod(lambda number: (2**30, 16 * 2**30))
class Ones(Matrix):
    def sum(self): return {total}
def ones(*shape, device=None): return Ones() if device else Matrix()
"""

    @pytest.mark.parametrize(
        ("code", "level", "said"),
        [
            (CUDA.format(total="64.0**3"), "ok", "Tesla T4 (cuda:0), 1.0 of 16.0 GiB free; a kernel runs"),
            (CUDA.format(total="0.0"), "fail", "a product of ones sums to 0"),
            (CUDA.format(total="[][0]"), "fail", "IndexError"),
            (
                "class cuda:\n    def init(): raise RuntimeError('driver is too old')\n",
                "warn",
                "PyTorch finds no device: RuntimeError: driver is too old",
            ),
        ],
    )
    def test_a_gpu_is_tried(
        self, code: str, level: str, said: str, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fakes.module("torch", TORCH.format(cuda="13.2") + code)
        monkeypatch.setattr(packages, "driver_seen", lambda: "NVIDIA 590.1")
        finding = only(packages.gpu())
        assert (finding.level, said in finding.found) == (level, True), finding

    def test_ray_that_cannot_be_imported(self, fakes: Fakes) -> None:
        fakes.module("ray", "raise ImportError('_raylet.so: undefined symbol')")
        finding = only(packages.ray(deep=True))
        assert (finding.level, "undefined symbol" in finding.found) == ("fail", True)
        assert 'engine.backend = "local"' in finding.do

    def test_ray_that_cannot_start(self, fakes: Fakes) -> None:
        fakes.module("ray", FINE + "def init(**_): raise RuntimeError('no port is free')\n")
        assert only(packages.ray(deep=False)).level == "ok"
        finding = only(packages.ray(deep=True))
        assert (finding.level, "cannot start: RuntimeError: no port is free" in finding.found) == ("fail", True)

    @pytest.mark.slow
    def test_ray_is_started_and_ended(self) -> None:
        finding = only(packages.ray(deep=True))
        assert (finding.level, "a worker answered" in finding.found) == ("ok", True), finding

    def test_flower_as_it_is(self) -> None:
        assert only(packages.flower()).level == "ok"

    def test_flower_without_what_we_use(self, fakes: Fakes) -> None:
        fakes.module("flwr", "")
        fakes.module("flwr.app", "def __getattr__(name): return type(name, (), {})")
        finding = only(packages.flower())
        assert finding.level == "fail"
        assert "No module named 'flwr." in finding.found
        assert "flwr[simulation]>=" in finding.do

    def test_a_package_outside_its_range(self, fakes: Fakes) -> None:
        assert only(packages.requirements()).level == "ok"
        fakes.version("flwr", "1.20.0")
        finding = only(packages.requirements())
        assert finding.level == "fail"
        assert finding.found.startswith("flwr 1.20.0 is outside >=1.")

    def test_a_missing_package_and_an_old_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packages, "_declared", lambda: {"python": ">=4.1", "no-such-package": ">=2"})
        assert only(packages.requirements()).found == "no-such-package is not installed"
        assert only(packages.python()).level == "fail"

    def test_an_answer_that_does_not_come(self) -> None:
        assert packages.probe("torch", timeout_s=0.01) == [{"error": "no answer within 0.01 s"}]

    @pytest.mark.parametrize(
        ("version", "bounds", "inside"),
        [
            ("1.38", ">=1.38", True),
            ("1.38.0", "==1.38", True),
            ("1.4", ">=1.38", False),
            ("2.15.0+cpu", ">=2.11,<3", True),
            ("3.0.dev1", ">=2.11, <3", False),
            ("0.4.5", "!=0.4.5", False),
            ("7", "", True),
        ],
    )
    def test_versions_are_compared_by_number(self, version: str, bounds: str, inside: bool) -> None:
        assert packages.satisfies(version, bounds) is inside


class TestData:
    def test_what_is_there_what_is_not_and_what_is_broken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        samples.write_heart(tmp_path, monkeypatch)
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for split in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                (raw / f"{split}-{kind}-ubyte").write_bytes(b"cut short")
        (tmp_path / "cifar10" / "cat").mkdir(parents=True)
        (tmp_path / "cifar10" / "dog").mkdir()
        (tmp_path / "cifar10" / "cat" / "1.png").write_bytes(b"no image")
        found = {finding.name.removeprefix("data "): finding for finding in packages.datasets(tmp_path)}
        files = {file.stem for file in (HOME / "fedsim" / "datasets").glob("[!_]*.py")}
        assert set(found) == files
        assert {name: found[name].level for name in ("heart", "digits", "mnist", "imagefolder", "shakespeare")} == {
            "heart": "ok",
            "digits": "ok",
            "mnist": "fail",
            "imagefolder": "fail",
            "shakespeare": "warn",
        }
        assert found["cifar100"].found == "not there; a run that names it downloads it"
        assert found["digits"].found == "1797 examples, 10 classes"
        assert "no such file" in found["shakespeare"].found
        assert found["shakespeare"].do
        assert not (tmp_path / "decoded").exists()

    def test_no_data_root(self, tmp_path: Path) -> None:
        finding = next(machine.disks(tmp_path / "none"))
        assert (finding.level, "no such folder" in finding.found) == ("warn", True)
        (tmp_path / "file").write_text("")
        assert next(machine.disks(tmp_path / "file")).level == "fail"


class TestMachine:
    def test_variables_that_go_online(self) -> None:
        quiet = {name: value for name, (value, _) in machine._ONLINE.items()}
        assert only(machine.environment(quiet)).found == "Flower and Ray stay offline"
        loud = only(machine.environment({**quiet, "FLWR_TELEMETRY_ENABLED": "1"}))
        assert loud == Finding(
            "environment",
            "warn",
            "FLWR_TELEMETRY_ENABLED=1: Flower reports its use",
            "export FLWR_TELEMETRY_ENABLED=0",
        )
        joined = next(machine.environment({**quiet, "RAY_ADDRESS": "10.0.0.1:6379"}))
        assert (joined.level, "starts a Ray of its own" in joined.found) == ("warn", True)
        assert only(machine.environment({})).level == "ok"

    def test_a_flower_home_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLWR_HOME", str(tmp_path / "new"))
        assert only(machine.flower_home()).level == "ok"
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FLWR_HOME", str(tmp_path / "file" / "home"))
        finding = only(machine.flower_home())
        assert (finding.level, "cannot be written" in finding.found) == ("warn", True)

    @pytest.mark.skipif(
        os.geteuid() == 0,
        reason="skipped: this user is root, whom a read-only folder does not stop, so nothing is there to be found",
    )
    def test_a_read_only_flower_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tmp_path.chmod(0o500)
        monkeypatch.setenv("FLWR_HOME", str(tmp_path))
        assert "Permission denied" in only(machine.flower_home()).found

    @pytest.mark.parametrize(
        ("total", "free", "level"),
        [(64 * 2**20, 64 * 2**20, "warn"), (8 * GIB, GIB // 2, "warn"), (8 * GIB, 8 * GIB, "ok")],
    )
    def test_shared_memory(
        self, total: int, free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = NamedTuple("Usage", [("total", int), ("used", int), ("free", int)])(total, total - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        finding = only(machine.shared_memory(tmp_path))
        assert finding.level == level
        assert ("--shm-size" in finding.do) == (total < GIB)

    def test_no_shared_memory(self, tmp_path: Path) -> None:
        assert only(machine.shared_memory(tmp_path / "none")).level == "ok"

    def test_full_disks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = NamedTuple("Usage", [("total", int), ("used", int), ("free", int)])(GIB, GIB, 1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert [finding.level for finding in machine.disks(tmp_path)] == ["warn", "fail", "fail"]

    def test_few_open_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
        finding = only(machine.open_files())
        assert (finding.level, "at most 4096 without" in finding.do) == ("warn", True)
        monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
        assert only(machine.open_files()).found == "no limit"


class Kernel:
    """A root with the files in which Linux says what a process may use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    made = Kernel(tmp_path)
    made.write("proc/meminfo", f"MemTotal: {512 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {400 * 2**20} kB\n")
    return made


class TestContainers:
    def test_without_a_limit(self, kernel: Kernel) -> None:
        assert only(machine.cores(kernel.root)) == Finding("cores", "ok", "64")
        assert only(machine.memory(kernel.root)) == Finding("memory", "ok", "400.0 GiB free of 512.0 GiB")

    def test_version_2_the_tightest_group_counts(self, kernel: Kernel) -> None:
        kernel.write("proc/self/cgroup", "0::/pod/run\n")
        kernel.write("sys/fs/cgroup/pod/run/cpu.max", "max 100000\n")
        kernel.write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
        kernel.write("sys/fs/cgroup/pod/run/memory.max", f"{8 * GIB}\n")
        kernel.write("sys/fs/cgroup/pod/run/memory.current", f"{5 * GIB}\n")
        kernel.write("sys/fs/cgroup/pod/run/memory.stat", f"anon 1\ninactive_file {2 * GIB}\n")
        kernel.write("sys/fs/cgroup/pod/memory.max", "max\n")
        cores, memory = only(machine.cores(kernel.root)), only(machine.memory(kernel.root))
        assert cores.level == "warn"
        assert "64 in the machine, but this process has a quota of 1.5" in cores.found
        assert cores.do == "set engine.workers = 1"
        assert memory.level == "warn"
        assert memory.found == "5.0 GiB free of 8.0 GiB that the container may use (the machine has 512.0 GiB)"
        assert memory.do.startswith("set engine.workers = 8")

    def test_version_1_with_the_path_of_the_host(self, kernel: Kernel) -> None:
        kernel.write("proc/self/cgroup", "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
        kernel.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
        (kernel.root / "sys/fs/cgroup/cpu").symlink_to("cpu,cpuacct")
        kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
        kernel.write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB // 2}\n")
        assert "a quota of 4;" in only(machine.cores(kernel.root)).found
        memory = only(machine.memory(kernel.root))
        assert (memory.level, memory.found.split(" of ")[0]) == ("fail", "0.5 GiB free")

    def test_an_affinity(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
        assert only(machine.cores(kernel.root)).do == "set engine.workers = 3"

    def test_no_limit_in_version_1(self, kernel: Kernel) -> None:
        kernel.write("proc/self/cgroup", "5:memory:/\n3:cpu:/\n")
        kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        kernel.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        kernel.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        assert machine.memory_limit(kernel.root) == (None, None)
        assert machine.cpu_quota(kernel.root) is None


class TestCommand:
    def doctor(self, fakes: Fakes, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
        kept = {"PYTHONPATH": str(fakes.folder), "FEDSIM_DATA": str(tmp_path), "FLWR_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, str(HOME / "run_sim.py"), "doctor", *words],
            cwd=tmp_path,
            env={**os.environ, **kept},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_it_speaks_where_nothing_can_be_imported(self, fakes: Fakes, tmp_path: Path) -> None:
        for name in ("torch", "torchvision", "ray", "flwr", "numpy"):
            fakes.module(name, f"raise ImportError('{name} is broken')")
        done = self.doctor(fakes, tmp_path, "--json")
        assert (done.returncode, done.stderr) == (doctor.FAILED, "")
        told: dict[str, Any] = json.loads(done.stdout)
        assert told["exit_code"] == doctor.FAILED
        failed = {line["name"]: line for line in told["findings"] if line["level"] == "fail"}
        assert set(failed) == {"PyTorch", "torchvision", "Ray", "Flower"}
        assert "ImportError: torch is broken" in failed["PyTorch"]["found"]
        assert all(line["do"] for line in failed.values())

    @pytest.mark.slow
    def test_a_sound_machine(self, fakes: Fakes, tmp_path: Path) -> None:
        done = self.doctor(fakes, tmp_path)
        assert "fail " not in done.stdout, done.stdout
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1].endswith(" 0 failed")


def test_the_doctor_imports_nothing_that_may_be_broken() -> None:
    code = "import sys, run_sim, fedsim.doctor.machine, fedsim.doctor.packages; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "torchvision", "ray", "flwr", "numpy", "pandas"}


@pytest.mark.parametrize(("levels", "code"), [(["ok", "warn"], 0), (["ok", "fail", "warn"], 2), ([], 0)])
def test_only_a_failure_is_an_exit_code(levels: list[Any], code: int) -> None:
    assert doctor.exit_code([Finding("x", level, "") for level in levels]) == code


def test_advice_is_a_line_of_its_own() -> None:
    assert Finding("cores", "ok", "2").text == "ok    cores               2"
    assert Finding("cores", "warn", "2", "more").text.endswith("2\n" + " " * 26 + "-> more")
