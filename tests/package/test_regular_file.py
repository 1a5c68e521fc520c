"""What a user names as a file is read where it is one; a pipe would hold the read for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llcuda_ffi.engine.saved_prefixes import read_prefixes
from llcuda_ffi.errors import LlcudaError
from llcuda_ffi.gguf import GGUFReader
from llcuda_ffi.gguf.safetensors import SafeTensors
from llcuda_ffi.multimodal.media import read_image


@pytest.mark.parametrize("read", [GGUFReader, SafeTensors, read_prefixes, read_image])
def test_a_pipe_and_a_device(tmp_path: Path, read: type) -> None:
    """Neither is waited for nor read without end: an exception of ours names it."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/zero")):
        with pytest.raises(LlcudaError, match=place.name):
            read(place)
