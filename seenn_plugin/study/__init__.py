"""What early exit brings on trained networks: one run file for each of them, and one page made of the run files."""

from .page import write_results
from .run_study import study

__all__ = ["study", "write_results"]
