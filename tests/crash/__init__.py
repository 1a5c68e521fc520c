"""The misuses that would take libllama, and the process with it, down: one function for each row of the crash table."""

from . import batches, contexts, files, memory, mtp, samplers
from .world import ROWS

__all__ = ["ROWS", "batches", "contexts", "files", "memory", "mtp", "samplers"]
