"""What may crash the process that imports it: `python -m fedsim.doctor.probes NAME` prints what it found as JSON.

Everything is imported by name and late: a wheel that was built for another PyTorch, a driver that is too old or a
broken file may end this process, and only this one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def torch() -> Iterator[Found]:
    """Import PyTorch and multiply two matrices."""
    module = import_module("torch")
    two = module.ones(2, 2)
    assert float((two @ two).sum()) == 8.0, "ones times ones"
    yield {
        "version": str(module.__version__),
        "cuda": module.version.cuda,
        "hip": getattr(module.version, "hip", None),
    }


def torchvision() -> Iterator[Found]:
    """Import torchvision and call one of its compiled operators, which are built for one version of PyTorch."""
    module = import_module("torchvision")
    tensor = import_module("torch").tensor
    boxes = tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    kept = import_module("torchvision.ops").nms(boxes, tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise RuntimeError(f"its compiled operators compute nonsense: nms kept {kept}, not [0, 2]")
    yield {"version": str(module.__version__)}


def cuda() -> Iterator[Found]:
    """Run a small kernel on every CUDA device."""
    module = import_module("torch")
    try:
        module.cuda.init()
    except Exception as error:  # AssertionError, RuntimeError: PyTorch says in many ways that there is none
        yield {"devices": [], "reason": _first_line(error)}
        return
    devices = []
    for number in range(module.cuda.device_count()):
        device: Found = {"name": module.cuda.get_device_name(number), "error": None}
        try:
            device["free"], device["total"] = module.cuda.mem_get_info(number)
            ones = module.ones(64, 64, device=f"cuda:{number}")
            total = float((ones @ ones).sum())
            if total != 64.0**3:
                device["error"] = f"a product of ones sums to {total:g}, not {64**3}"
        except Exception as error:
            device["error"] = _first_line(error)
        devices.append(device)
    yield {"devices": devices, "reason": None}


def ray() -> Iterator[Found]:
    """Import Ray."""
    yield {"version": str(import_module("ray").__version__)}


def ray_deep() -> Iterator[Found]:
    """Start a Ray of one worker, let it answer, and end it."""
    module = import_module("ray")
    os.environ.pop("RAY_ADDRESS", None)
    module.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        answer = module.get(module.remote(_process).remote(), timeout=90.0)
        yield {"worker": answer, "store": module.cluster_resources()["object_store_memory"]}
    finally:
        module.shutdown()


def flower() -> Iterator[Found]:
    """Use what fedsim/engine/flower.py takes from inside Flower."""
    import_module("fedsim.engine.flower").check()
    yield {}


def datasets(root: str, *names: str) -> Iterator[Found]:
    """Read data sets, each as far as is needed to know that it can be read.

    Args:
        root: The data root.
        names: Names of data sets.
    """
    plugins, base = import_module("fedsim.plugins"), import_module("fedsim.datasets").Dataset
    for name in names:
        offline: Found = {}
        try:
            kind = plugins.find("fedsim.datasets", name, base)
            if name == "imagefolder":
                yield {"name": name, "found": _images(kind, Path(root))}
                continue
            offline = {"download": False} if "download" in kind.model_fields else {}
            raw = kind(**offline).load(Path(root))
            tests = f", {len(raw.test)} of the official test set" if raw.test is not None else ""
            yield {"name": name, "found": f"{len(raw.train)} examples{tests}, {raw.num_classes} classes"}
        except Exception as error:  # each data set for itself
            # What is missing is said without a cause, or because a file is not there; what is broken has another.
            broken = not _said_on_purpose(error) or not isinstance(error.__cause__, FileNotFoundError | None)
            yield {
                "name": name,
                "error": " ".join(str(error).split()) or type(error).__name__,
                "broken": broken,
            } | {"downloads": bool(offline)}


def _process() -> int:
    return os.getpid()


def _images(kind: Any, root: Path) -> str:
    """Read one image: decoding all takes minutes, and leaves a large cache."""
    module = import_module(kind.__module__)
    folder = root / kind().path
    train = folder / "train" if (folder / "train").is_dir() else folder
    names = module._class_names(train)
    listing = module._listing(train, names)
    module._decode_one(listing, 0, None, False)
    return f'{len(listing.files)} images of {len(names)} classes in "{kind().path}", the first of them read'


def _said_on_purpose(error: Exception) -> bool:
    return isinstance(error, import_module("fedsim.errors").DataError)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


PROBES: dict[str, Callable[..., Iterator[Found]]] = {
    "torch": torch,
    "torchvision": torchvision,
    "cuda": cuda,
    "ray": ray,
    "ray_deep": ray_deep,
    "flower": flower,
    "datasets": datasets,
}


def main(name: str, *words: str) -> None:
    """Print one JSON object a line: what was found, or {"error": why not}."""
    try:
        for found in PROBES[name](*words):
            print(json.dumps(found), flush=True)
    except Exception as error:  # the doctor says it; a traceback would not
        print(json.dumps({"error": _first_line(error)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
