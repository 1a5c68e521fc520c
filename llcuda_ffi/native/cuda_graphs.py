"""CUDA graphs: when they are used, and when not.

llama.cpp's CUDA library records its kernels when two batches in a row have the same shape, and plays the recording
from the third on: single streams gain 8% by it. With kernels of cuBLAS in it, a recording made over an earlier one of
another shape was seen to give wrong numbers, to end the process with "an illegal instruction was encountered", and to
hang (llama.cpp 0c1e57098, CUDA 13, H200). cuBLAS multiplies float matrices, and computes attention where flash
attention is off; models of quantized matrices with flash attention were right in every one of 480 shapes. So the first
context that would need cuBLAS turns graphs off for the process. Where they are in use already, batches of texts are
kept from repeating their shape, and for other contexts there is a warning.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from ..gguf import GGUFReader
from ..gguf.types import GGMLType
from . import cuda

logger = logging.getLogger("llcuda_ffi")

_FLOATS = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.F64})
_LOOKED_UP = ("token_embd.", "position_embd.", "token_types.")  # rows of these are read, not multiplied

_in_use = False


@lru_cache(maxsize=16)
def multiplies_floats(path: Path) -> bool:
    """Whether a model has matrices of floats to multiply by."""
    with GGUFReader(path) as reader:
        tied = "output.weight" not in reader.tensors
        return any(
            tensor.ggml_type in _FLOATS
            and sum(n > 1 for n in tensor.shape) > 1
            and (not name.startswith(_LOOKED_UP) or (tied and name == "token_embd.weight"))
            for name, tensor in reader.tensors.items()
        )


def decide(path: Path, *, flash_attn: bool, embeddings: bool) -> None:
    """Decide before a context on a GPU computes; again when it is known whether it has flash attention."""
    if not cuda.in_force().graphs:
        return
    if flash_attn and not embeddings and not multiplies_floats(path):
        return
    if _in_use and not embeddings:
        logger.warning(
            "%s: float matrices, or attention without flash attention, may be computed wrongly with CUDA graphs, "
            "which are in use already: call llcuda_ffi.native.cuda.configure(graphs=False) before anything is loaded",
            path.name,
        )
    elif not _in_use and cuda.avoid_graphs():
        logger.info("%s: CUDA graphs are off in this process", path.name)


def used() -> None:
    """A context computes on a GPU from here on: the switch was read."""
    global _in_use
    _in_use = bool(cuda.in_force().graphs)


class Repeats:
    """Watches the shapes of the batches of one context.

    Attributes:
        matter: whether two of one shape in a row are to be avoided.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.matter = on_gpu and bool(cuda.in_force().graphs)
        self._last: tuple[int, int] | None = None

    def again(self, n_tokens: int, n_texts: int) -> bool:
        """Whether the batch before had this shape, so that this one must get another token."""
        repeated = self.matter and (n_tokens, n_texts) == self._last
        self._last = n_tokens + repeated, n_texts
        return repeated
