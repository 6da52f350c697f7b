"""What early exit brings on trained networks: one run file for each of them, and one page made of the run files."""

from .study import study
from .study import study

