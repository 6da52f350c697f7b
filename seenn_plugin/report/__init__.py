"""One page about a wrapped network on a data set: what early exit costs, what it skips_finished_rows, and on whom."""

from .write import write_report

__all__ = ["write_report"]
