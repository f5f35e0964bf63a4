"""The report of a comparison study: one self-contained page, with its figures and tables beside it as files.

Nothing here needs the scenarios, the data or the models: study.json and the run folders say it all, and a study
that is under way can be reported on at any time.
"""

from fedsim.study_report.page import write_study_report

__all__ = ["write_study_report"]
