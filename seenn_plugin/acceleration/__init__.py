"""Faster timesteps on request: optimised copies, compiled steps, CUDA graphs.

Internal. Options of :class:`~seenn_plugin.EarlyExitWrapper` turn them on.
"""

from .compile_settings import CompileSettings
from .compiled_adapter import CompiledAdapter, StepCache
from .optimized_copy import OptimizedCopies, OptimizedCopy, Options

__all__ = ["CompileSettings", "CompiledAdapter", "OptimizedCopies", "OptimizedCopy", "Options", "StepCache"]
