"""Python, PyTorch, Ray, Flower and the data sets: versions, and whether they do what a run needs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fedsim.doctor import Finding

HOME = Path(__file__).resolve().parents[2]
"""The folder that holds the packages, and pyproject.toml where they run from their repository."""

PROBE_S = 180.0
"""Seconds that an import, or reading a data set, may take on a slow disk."""

_TOGETHER = (
    "install both from one index, as one pair: pip install --force-reinstall torch torchvision --index-url "
    "https://download.pytorch.org/whl/cpu (or whl/cu128 and the like for a GPU)"
)

Found = dict[str, Any]


def python() -> Iterator[Finding]:
    """Compare this Python with what the project asks for."""
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = _declared().get("python", "")
    if satisfies(version, wanted):
        yield Finding("Python", "ok", f"{version} ({sys.executable})")
    else:
        yield Finding("Python", "fail", f"{version}, wanted {wanted}", "make the environment with a newer Python")


def requirements() -> Iterator[Finding]:
    """Compare the versions of installed packages with the ranges of the project."""
    wanted = {name: bounds for name, bounds in _declared().items() if name != "python"}
    good = 0
    for name, bounds in wanted.items():
        version = _version(name)
        if version is None:
            do = f'pip install "{name}{bounds}", or `make sim`, which sets everything up'
            yield Finding("packages", "fail", f"{name} is not installed", do)
        elif not satisfies(version, bounds):
            do = f'pip install "{name}{bounds}"'
            yield Finding("packages", "fail", f"{name} {version} is outside {bounds}", do)
        else:
            good += 1
    if good == len(wanted):
        yield Finding("packages", "ok", f"all {good} are installed, in the versions asked for")


def torch_pair() -> Iterator[Finding]:
    """Import PyTorch and torchvision; their wheels have to be built for each other."""
    torch, vision = _torch(), probe("torchvision")[-1]
    built = f"built for CUDA {torch['cuda']}" if torch.get("cuda") else "built without CUDA"
    if "error" in torch:
        yield Finding("PyTorch", "fail", f"torch {_version('torch')}: {torch['error']}", _TOGETHER)
    else:
        yield Finding("PyTorch", "ok", f"torch {torch['version']}, {built}")
    if "error" not in vision:
        yield Finding("torchvision", "ok", f"torchvision {vision['version']}, its compiled operators work")
        return
    tags = [_build(version) for version in (_version("torch"), _version("torchvision"))]
    found = f"torchvision {_version('torchvision')}: {vision['error']}"
    if "error" in torch:
        yield Finding("torchvision", "fail", found, "first mend PyTorch")
        return
    if all(tags) and tags[0] != tags[1]:
        found += f" (torch is the build {tags[0]}, torchvision the build {tags[1]})"
    yield Finding("torchvision", "fail", found, _TOGETHER)


def gpu() -> Iterator[Finding]:
    """Say whether a GPU can be used, and run a kernel on each."""
    driver, torch = driver_seen(), _torch()
    if "error" in torch:
        yield Finding("GPU", "warn", "not looked at: PyTorch cannot be imported", "first mend PyTorch")
        return
    if not torch["cuda"] and not torch.get("hip"):
        if driver:
            yield Finding(
                "GPU",
                "warn",
                f"there is a driver ({driver}), but torch {torch['version']} is built without CUDA: runs use "
                "the CPU",
                "install torch and torchvision from an index with CUDA, such as "
                "https://download.pytorch.org/whl/cu128",
            )
        else:
            yield Finding("GPU", "ok", "no driver seen, PyTorch without CUDA: runs use the CPU")
        return
    found = probe("cuda")[-1]
    devices: list[Found] = found.get("devices", [])
    reason = found.get("error") or found.get("reason")
    if not devices and driver is None:
        yield Finding("GPU", "ok", "no driver seen: runs use the CPU (engine.gpus_per_worker = 0)")
    elif not devices:
        yield Finding(
            "GPU",
            "warn",
            f"there is a driver ({driver}), but PyTorch finds no device: {reason}",
            "see whether `nvidia-smi` shows it, whether the driver is as new as the CUDA that torch is built for, "
            "whether the container was started with --gpus all, and what CUDA_VISIBLE_DEVICES says",
        )
    for number, device in enumerate(devices):
        if device["error"]:
            do = "update the driver, or install a torch that is built for this device"
            yield Finding("GPU", "fail", f"{device['name']} (cuda:{number}): {device['error']}", do)
        else:
            free, total = device["free"] / 2**30, device["total"] / 2**30
            found_ = f"{device['name']} (cuda:{number}), {free:.1f} of {total:.1f} GiB free; a kernel runs"
            yield Finding("GPU", "ok", found_)


def ray(*, deep: bool) -> Iterator[Finding]:
    """Import Ray; with `deep`, start one and end it."""
    found = probe("ray")[-1]
    instead = 'engine.backend = "local" runs without it'
    if "error" in found:
        do = f'pip install --force-reinstall "ray{_declared().get("ray", "")}"; {instead}'
        yield Finding("Ray", "fail", f"ray {_version('ray')}: {found['error']}", do)
    elif not deep:
        yield Finding("Ray", "ok", f"ray {found['version']} can be imported (--deep starts it)")
    else:
        started = probe("ray_deep")[-1]
        if "error" in started:
            do = f"look into session_latest/logs in Ray's temporary folder for why; {instead}"
            yield Finding("Ray", "fail", f"ray {found['version']} cannot start: {started['error']}", do)
        else:
            store = started["store"] / 2**30
            yield Finding(
                "Ray", "ok", f"ray {found['version']} starts; a worker answered; object store of {store:.1f} GiB"
            )


def flower() -> Iterator[Finding]:
    """Try what the platform takes from inside Flower."""
    found, version = probe("flower")[-1], _version("flwr")
    if "error" in found:
        yield Finding(
            "Flower",
            "fail",
            f"flwr {version} is not as fedsim/engine/flower.py needs it: {found['error']}",
            f'pip install "flwr[simulation]{_declared().get("flwr", "")}" in another version, or update fedsim',
        )
    else:
        yield Finding("Flower", "ok", f"flwr {version}, its internals are as fedsim/engine/flower.py needs them")


def datasets(root: Path) -> Iterator[Finding]:
    """Read every data set that is there.

    Args:
        root: The data root.
    """
    if "error" in _torch():
        yield Finding("data sets", "warn", "not looked at: PyTorch cannot be imported", "first mend PyTorch")
        return
    files = sorted((HOME / "fedsim" / "datasets").glob("[!_]*.py"))
    names = [file.stem for file in files]
    told = probe("datasets", str(root.absolute()), *names)
    known = {found["name"]: found for found in told if "name" in found}
    for name in names:
        found = known.get(name)
        if found is None:
            why = told[-1].get("error", "no answer")
            yield Finding(f"data {name}", "fail", f"not read: {why}", "fetch the files of this data set again")
            return  # what comes after it has not been tried
        if "error" not in found:
            yield Finding(f"data {name}", "ok", found["found"])
            continue
        if found["downloads"] and not found["broken"]:
            yield Finding(f"data {name}", "ok", "not there; a run that names it downloads it")
            continue
        said, _, do = found["error"].partition("; ")  # the platform's messages say what to do after a semicolon
        do = do or "fetch its files again, or do without it"
        yield Finding(f"data {name}", "fail" if found["broken"] else "warn", said, do)


def driver_seen() -> str | None:
    """Return where a GPU's driver shows, or None."""
    version = Path("/proc/driver/nvidia/version")
    if version.is_file():
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([0-9.]+)", version.read_text(encoding="utf-8"))
        return f"NVIDIA {found.group(1)}" if found else "NVIDIA"
    if Path("/dev/nvidiactl").exists():
        return "/dev/nvidiactl"
    if Path("/dev/kfd").exists():
        return "/dev/kfd"
    return "nvidia-smi" if shutil.which("nvidia-smi") else None


def probe(name: str, *words: str, timeout_s: float = PROBE_S) -> list[Found]:
    """Run one of `fedsim.doctor.probes` in a process of its own.

    Returns:
        What it printed, one dictionary a line; the last is {"error": ...} if it ended before it was done.
    """
    path = os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fedsim.doctor.probes", name, *words],
            cwd=HOME,
            env={**os.environ, **quiet, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [{"error": f"no answer within {timeout_s:g} s"}]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not told:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        told.append({"error": f"its process {_end(done.returncode)}: {last}"})
    return told


def satisfies(version: str, bounds: str) -> bool:
    """Say whether a version is within bounds such as ">=1.38,<2"; only the numbers of a release count.

    >>> satisfies("2.15.0+cpu", ">=2.11"), satisfies("1.9", ">=1.10"), satisfies("1.38.0", "==1.38")
    (True, False, True)
    """
    for bound in filter(None, (part.strip() for part in bounds.split(","))):
        wanted = bound.lstrip("<>=!~")
        operator = bound.removesuffix(wanted)
        mine, theirs = _release(version), _release(wanted)
        width = max(len(mine), len(theirs))
        mine, theirs = (numbers + (0,) * (width - len(numbers)) for numbers in (mine, theirs))
        holds = {
            ">=": mine >= theirs,
            "~=": mine >= theirs,
            ">": mine > theirs,
            "<=": mine <= theirs,
            "<": mine < theirs,
            "==": mine == theirs,
            "!=": mine != theirs,
        }
        if not holds[operator or "=="]:
            return False
    return True


@cache
def _torch() -> Found:
    return probe("torch")[-1]


@cache
def _declared() -> dict[str, str]:
    """Return package -> bounds as the project declares them, "python" among them."""
    file = HOME / "pyproject.toml"
    if file.is_file() and sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return _bounds(project["dependencies"], project["requires-python"])
    try:
        told = metadata.distribution("fedsim")
    except metadata.PackageNotFoundError:
        return {"python": ">=3.11"}
    wanted = [line for line in told.requires or [] if "extra ==" not in line]
    return _bounds(wanted, told.metadata["Requires-Python"])


def _bounds(lines: Sequence[str], python_: str) -> dict[str, str]:
    found = {"python": python_}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?([^;)]*)", line)
        if match:
            found[match.group(1)] = match.group(2).strip()
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _build(version: str | None) -> str:
    """Return what a wheel was built for: "cpu", "cu128"; "" where its version does not say."""
    return (version or "").partition("+")[2]


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in found.group().split(".")) if found else ()


def _end(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
