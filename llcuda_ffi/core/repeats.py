"""Batches of one shape, one after another, on a GPU.

llama.cpp's CUDA library records a graph of kernels when two batches in a row have the same shape, and plays it from the
third on. With kernels of cuBLAS in it (float weights in batches of many tokens; attention without flash attention) a
graph that is recorded over an earlier one of another shape was seen to give wrong numbers, to end the process with "an
illegal instruction was encountered", and to hang (llama.cpp 0c1e57098, CUDA 13, H200). Steps of generation, one
token for each sequence, were right in every case tried, and gain by it. So the other batches are kept from repeating.
"""

from __future__ import annotations

from ..native import cuda
from .context import Context


class Repeats:
    """Watches the shapes of the batches of one context.

    Attributes:
        matter: whether two of one shape in a row are to be avoided.
    """

    def __init__(self, context: Context) -> None:
        self.matter = context.model.placement.on_gpu and bool(cuda.in_force().graphs)
        self._last: tuple[int, int] | None = None

    def again(self, *shape: int) -> bool:
        """Whether the batch before had this shape: its tokens and its outputs, or its sequences."""
        return self.matter and shape == self._last

    def seen(self, *shape: int) -> None:
        """The batch has this shape."""
        self._last = (shape[0], shape[1])
