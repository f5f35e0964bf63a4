"""Whether runs may be compared: the same data, partition, initial weights and sampled clients within a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsim.study.design import Run

ALIKE: Mapping[str, str] = {
    "partition_sha256": "partition",
    "data_sha256": "data",
    "initial_sha256": "initial weights",
    "samples_sha256": "clients a round",
}
"""Hash of a run's record -> what it is of."""


def unlike(runs: Sequence[tuple[Run, dict[str, Any]]], baseline: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the records of runs that must not be compared, with the reason.

    Args:
        runs: Finished runs and their records.
        baseline: Label of the method whose run the others of a pair are held against; where it has none, the
            first one's.
    """
    groups: dict[Any, list[tuple[Run, dict[str, Any]]]] = {}
    for run, record in runs:
        groups.setdefault((run.scenario, run.pair), []).append((run, record))
    for members in groups.values():
        reference = next((record for run, record in members if run.method == baseline), members[0][1])
        for run, record in members:
            different = [words for key, words in _compared(run) if record[key] != reference[key]]
            if different:
                yield (
                    record,
                    f"has another {' and other '.join(different)} than {reference['method']} with the same seed, "
                    "so they are not compared; data or code changed between the runs: remove the folder of the "
                    "older one, and run the study again",
                )


def _compared(run: Run) -> Iterator[tuple[str, str]]:
    for key, words in ALIKE.items():
        # Devices that are away, slow or late answer differently to methods that take them longer.
        if key != "samples_sha256" or run.resolved.system is None:
            yield key, words
