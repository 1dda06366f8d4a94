"""The report: models side by side as one page, as JSON, and as a table on the terminal."""

from __future__ import annotations

from clipdistill.evidence.report.results import as_dict
from clipdistill.evidence.report.terminal import table
from clipdistill.evidence.report.writing import write_report

__all__ = ["as_dict", "table", "write_report"]
