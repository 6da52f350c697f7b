"""The engine: which rows run next?"""

from .compaction import infer
from .result import ExitResult
from .trace import trace

__all__ = ["ExitResult", "infer", "trace"]
