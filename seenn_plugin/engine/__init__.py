"""The engine: which rows run next?"""

from .batch import infer, no_rows
from .chunking import fastest_chunk
from .flight import Way
from .result import ExitResult, StreamItem
from .stream import Start, Stream
from .trace import steps, trace

__all__ = ["ExitResult", "Start", "Stream", "StreamItem", "Way", "fastest_chunk", "infer", "no_rows", "steps", "trace"]
