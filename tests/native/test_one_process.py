"""What holds native memory says that it cannot be pickled or copied, and what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import AsyncLlama, Embedder, Llama, Model
from llcuda_ffi.errors import ConcurrentUseError

from ..support.tiny_model import make_tiny_bert, make_tiny_llama


@pytest.mark.parametrize("leave", [pickle.dumps, copy.deepcopy, copy.copy])
@pytest.mark.parametrize("kind", [Llama, AsyncLlama, Embedder, Model.load])
def test_cannot_leave(kind: Callable[[Path], Any], leave: Callable[[object], object], tmp_path: Path) -> None:
    """The message names the class, not a type of cffi inside of it."""
    path = tmp_path / "tiny.gguf"
    (make_tiny_bert if kind is Embedder else make_tiny_llama)(path)
    made = kind(path)
    with pytest.raises(ConcurrentUseError, match=f"^an? {type(made).__name__} holds memory of its process"):
        leave(made)
    if isinstance(made, AsyncLlama):
        made.llama.close()
    else:
        made.close()
