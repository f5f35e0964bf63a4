"""What the machine gives: cores, memory, shared memory, disks, files, environment. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedsim.doctor import Finding

GIB = 2**30
MIB = 2**20

LEAST_MEMORY = GIB
"""A driver with PyTorch, Ray and pandas takes about half of this, before data and workers."""

LEAST_FOR_A_WORKER = GIB // 2
"""Private memory of a worker that has imported PyTorch, and a small model."""

LEAST_SHARED = GIB
"""Weights, updates and the data lie there; Docker gives 64 MB unless told otherwise."""

LOW_DISK, NO_DISK = 2 * GIB, 100 * MIB
"""Free bytes below which a disk is worth a word, and below which a run will not get far."""

LEAST_FILES = 1024
"""Open files: each Ray worker holds dozens of sockets and logs; macOS gives 256."""

_NO_LIMIT = 2**60
"""Version 1 of cgroups writes a huge number where there is no limit."""

_ONLINE: Mapping[str, tuple[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": ("0", "Flower reports its use"),
    "FLWR_DISABLE_UPDATE_CHECK": ("1", "Flower asks for updates"),
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": ("1", "`flwr run` installs packages"),
    "RAY_USAGE_STATS_ENABLED": ("0", "Ray reports its use"),
}
"""Variable -> the value that keeps Flower and Ray at home, and what they do over the network with another."""


def environment(values: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Find variables that make a run use the network or somebody else's Ray.

    Args:
        values: The environment; None takes this process's.
    """
    values = os.environ if values is None else values
    online = {
        name: does for name, (quiet, does) in _ONLINE.items() if name in values and values[name].strip() != quiet
    }
    for name, does in online.items():
        quiet = _ONLINE[name][0]
        yield Finding("environment", "warn", f"{name}={values[name]}: {does}", f"export {name}={quiet}")
    if address := values.get("RAY_ADDRESS"):
        yield Finding(
            "environment",
            "warn",
            f"RAY_ADDRESS={address}: fedsim starts a Ray of its own all the same, other programs join that one",
            "set engine.address to use that cluster",
        )
    unset = [name for name in _ONLINE if name not in values]
    if unset and not online:
        yield Finding(
            "environment",
            "ok",
            "run_sim.py keeps Flower offline by itself; for `flwr run` and deployment export "
            + " ".join(f"{name}={_ONLINE[name][0]}" for name in unset),
        )
    elif not online:
        yield Finding("environment", "ok", "Flower and Ray stay offline")


def flower_home() -> Iterator[Finding]:
    """Say whether Flower can write where it keeps connections and logs."""
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").expanduser()
    where = f"{home} (FLWR_HOME)" if "FLWR_HOME" in os.environ else str(home)
    reason = _unwritable(home)
    if reason is None:
        yield Finding("FLWR_HOME", "ok", f"{where} can be written")
    else:
        yield Finding(
            "FLWR_HOME",
            "warn",
            f"{where} cannot be written ({reason}); run_sim.py does without it, `flwr run` and deployment do not",
            "export FLWR_HOME=<a folder of yours>",
        )


def cores(root: Path = Path("/")) -> Iterator[Finding]:
    """Compare the cores that this process may use with those the machine has.

    Args:
        root: Where /proc and /sys are.
    """
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = cpu_quota(root)
    usable = min(float(allowed), quota if quota is not None else float(there))
    if usable > there - 0.5:
        yield Finding("cores", "ok", f"{there}")
        return
    limits = [f"a quota of {quota:g}"] if quota is not None and quota < there else []
    limits += [f"an affinity of {allowed}"] if allowed < there else []
    workers = max(1, int(usable))
    yield Finding(
        "cores",
        "warn",
        f"{there} in the machine, but this process has {' and '.join(limits)}; one worker per core would be "
        f"{there} workers",
        f"set engine.workers = {workers}",
    )


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Compare the memory that this process may use with what workers take.

    Args:
        root: Where /proc and /sys are.
    """
    total, available = _meminfo(root / "proc" / "meminfo")
    limit, used = memory_limit(root)
    bounded = limit is not None and (total is None or limit < total)
    if bounded:
        assert limit is not None
        left = max(0, limit - (used or 0))
        available = left if available is None else min(available, left)
    if available is None:
        yield Finding("memory", "ok", "this system does not say how much there is")
        return
    if bounded and limit is not None:
        of_machine = f" (the machine has {_gib(total)})" if total else ""
        found = f"{_gib(available)} free of {_gib(limit)} that the container may use{of_machine}"
    else:
        found = f"{_gib(available)} free" + (f" of {_gib(total)}" if total else "")
    workers = os.cpu_count() or 1
    if available < LEAST_MEMORY:
        yield Finding("memory", "fail", found, "free memory or raise the limit: a run takes 1 GiB at the least")
    elif available < LEAST_MEMORY + workers * LEAST_FOR_A_WORKER:
        fit = max(1, (available - LEAST_MEMORY) // LEAST_FOR_A_WORKER)
        do = f"set engine.workers = {fit}: each takes about 0.5 GiB, and one per core would be {workers}"
        yield Finding("memory", "warn", found, do)
    else:
        yield Finding("memory", "ok", found)


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Say whether /dev/shm is large enough for Ray's object store and the updates.

    Args:
        path: Where shared memory is mounted.
    """
    if not path.is_dir():
        yield Finding("shared memory", "ok", f"no {path} here; Ray uses temporary files")
        return
    usage = shutil.disk_usage(path)
    found = f"{path} has {_size(usage.free)} free of {_size(usage.total)}"
    if usage.total < LEAST_SHARED:
        yield Finding(
            "shared memory",
            "warn",
            f"{found}: Ray would keep data on disk, and updates take the slow way",
            "start the container with --shm-size=4g (Docker gives 64 MB unless told), or use engine.backend = "
            '"local"',
        )
    elif usage.free < LEAST_SHARED:
        yield Finding("shared memory", "warn", found, f"remove what other programs left in {path}")
    else:
        yield Finding("shared memory", "ok", found)


def open_files() -> Iterator[Finding]:
    """Say how many files this process may open."""
    try:
        import resource
    except ImportError:  # not a Unix
        yield Finding("open files", "ok", "this system does not say how many there may be")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        most = "as many as you like" if hard == resource.RLIM_INFINITY else f"at most {hard}"
        yield Finding(
            "open files",
            "warn",
            f"at most {soft}; each Ray worker takes dozens",
            f"`ulimit -n {LEAST_FILES * 4}` in the shell that runs it ({most} without an administrator)",
        )
    else:
        yield Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def disks(root: Path) -> Iterator[Finding]:
    """Look for room where a run reads and writes.

    Args:
        root: The data root.
    """
    yield from _data_root(root)
    places = {
        "runs": (Path("runs").absolute(), "run in a folder of yours, or name one with --out"),
        "temporary files": (Path(tempfile.gettempdir()), "export TMPDIR=<a folder of yours>"),
    }
    for name, (folder, instead) in places.items():
        free = shutil.disk_usage(_existing(folder)).free
        found = f"{folder}: {_size(free)} free"
        reason = _unwritable(folder)
        if reason is not None:
            yield Finding(name, "fail", f"{folder} cannot be written ({reason})", instead)
        elif free < NO_DISK:
            yield Finding(name, "fail", found, "free some space: tables and models are written there")
        elif free < LOW_DISK:
            yield Finding(name, "warn", found, "free some space before a long run")
        else:
            yield Finding(name, "ok", found)


def _data_root(root: Path) -> Iterator[Finding]:
    """Look at the data root; data that are all there need only be read."""
    point = "point --data or FEDSIM_DATA to the folder of the data"
    free = shutil.disk_usage(_existing(root)).free
    if root.is_dir():
        do = "free some space before data are downloaded" if free < LOW_DISK else ""
        yield Finding("data root", "warn" if do else "ok", f"{root}: {_size(free)} free", do)
    elif root.exists():
        yield Finding("data root", "fail", f"{root} is no folder", point)
    elif reason := _unwritable(root):
        yield Finding("data root", "warn", f"{root}: no such folder, and it cannot be made ({reason})", point)
    else:
        yield Finding("data root", "warn", f"{root}: no such folder", f"{point}; the first download makes this one")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores the control group of this process may use, or None without a limit.

    Args:
        root: Where /proc and /sys are.
    """
    quotas = []
    for folder in _control_groups(root, "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: "200000 100000" or "max 100000"
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return the bytes that the control group of this process may use, and those it does; None without a limit.

    Args:
        root: Where /proc and /sys are.
    """
    found = []
    for folder in _control_groups(root, "memory"):
        for most, now, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read(folder / most).strip()
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                used = _read(folder / now).strip()
                # Pages of files that nobody uses are given back before memory runs out.
                spare = _statistic(folder / "memory.stat", cached)
                found.append((int(limit), max(0, int(used) - spare) if used.isdigit() else None))
    return min(found, key=lambda pair: pair[0], default=(None, None))


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups that may limit a controller, innermost first.

    In a container the path in /proc is often that of the host and not there; the limits are then at the top.
    """
    base = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        inside = Path(path.strip("/"))
        for part in (inside, *inside.parents):
            if (top / part).is_dir():
                yield top / part


def _statistic(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _meminfo(path: Path) -> tuple[int | None, int | None]:
    """Return total and available bytes."""
    values = {line.split(":")[0]: line.split()[1] for line in _read(path).splitlines() if len(line.split()) > 1}
    total, available = (values.get(name) for name in ("MemTotal", "MemAvailable"))
    return (int(total) * 1024 if total else None, int(available) * 1024 if available else None)


def _read(path: Path) -> str:
    """Return a file of the kernel's, "" where it has none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _unwritable(folder: Path) -> str | None:
    """Return why a file cannot be made in a folder, which need not be there yet, or None."""
    there = _existing(folder)
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _size(count: int) -> str:
    return _gib(count) if count >= GIB else f"{count / MIB:.0f} MiB"


def _gib(count: int | None) -> str:
    return f"{(count or 0) / GIB:.1f} GiB"
