"""One page about a wrapped network on a data set: what early exit costs, what it saves, and on whom."""

from .write import check_folder, write_report

__all__ = ["check_folder", "write_report"]
