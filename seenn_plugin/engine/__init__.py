"""The engine: which rows run next? One active batch for batches and streams.

Internal, but for the result types.
"""

from .active_batch import RunConfig
from .batch import infer, no_rows
from .chunking import fastest_chunk
from .result import ExitResult, StreamItem
from .stream import MakeRows, Stream
from .trace import steps, trace

__all__ = [
    "ExitResult",
    "MakeRows",
    "RunConfig",
    "Stream",
    "StreamItem",
    "fastest_chunk",
    "infer",
    "no_rows",
    "steps",
    "trace",
]
