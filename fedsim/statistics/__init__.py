"""Statistics of comparisons: what a few paired runs say, and what they cannot. NumPy and SciPy only.

docs/statistics.md has every definition with its source, its traps, and the measured coverage of the intervals.
"""

from fedsim.statistics.clients import Wins, pareto, wins
from fedsim.statistics.comparison import Corrected, Difference, compare
from fedsim.statistics.correction import holm
from fedsim.statistics.intervals import Described, Interval, describe
from fedsim.statistics.pairs import Paired, Test, paired, smallest_wilcoxon_p
from fedsim.statistics.ranking import Ranks, ranks

__all__ = [
    "Corrected",
    "Described",
    "Difference",
    "Interval",
    "Paired",
    "Ranks",
    "Test",
    "Wins",
    "compare",
    "describe",
    "holm",
    "paired",
    "pareto",
    "ranks",
    "smallest_wilcoxon_p",
    "wins",
]
