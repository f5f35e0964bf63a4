"""The report of one run: reads a run folder, writes one self-contained HTML page beside it.

Nothing here needs the scenario, the data or the model: an old folder, or one whose run was interrupted,
can be reported on again at any time.
"""

from fedsim.report.page import save_partition_figure, write_report

__all__ = ["save_partition_figure", "write_report"]
