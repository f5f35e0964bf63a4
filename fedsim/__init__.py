"""fedsim: federated learning on this machine, a Ray cluster or real Flower processes, judged by whom it serves.

`fedsim.load_run("runs/quickstart")` gives the tables of one run, `fedsim.load_study("studies/fairness")` those of a
comparison study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.frames import load_run, load_study

__all__ = ["load_run", "load_study"]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: pandas and the report are not loaded by `import fedsim`.
    if name in __all__:
        from fedsim import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
