"""The engine: which rows run next?"""

from .compaction import infer, no_rows
from .result import ExitResult
from .trace import trace

__all__ = ["ExitResult", "infer", "no_rows", "trace"]
