"""What a user names as a file is read and replaced where it is one; a pipe would hold the read for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi.engine.saved_prefixes import read_prefixes
from llcuda_ffi.errors import InvalidRequest, LlcudaError
from llcuda_ffi.gguf import GGUFReader
from llcuda_ffi.gguf.safetensors import SafeTensors
from llcuda_ffi.gguf.writer import write_gguf
from llcuda_ffi.multimodal.media import read_image
from llcuda_ffi.regular_file import replaceable, written_whole


@pytest.mark.parametrize("read", [GGUFReader, SafeTensors, read_prefixes, read_image])
def test_a_pipe_and_a_device(tmp_path: Path, read: type) -> None:
    """Neither is waited for nor read without end: an exception of ours names it."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for place in (pipe, Path("/dev/zero")):
        with pytest.raises(LlcudaError, match=place.name):
            read(place)


def _write_tensors(place: Path) -> None:
    write_gguf(place, {"general.architecture": "x"}, {"a": np.zeros(32, np.float32)})


@pytest.mark.parametrize("write", [_write_tensors, replaceable])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, write: Callable[[Path], object]) -> None:
    """A rename onto a device or a pipe would be the end of it: it is refused, and still there."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(InvalidRequest, match="no file that may be replaced"):
        write(pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_written_whole(tmp_path: Path) -> None:
    """A file takes its place at the end; one that could not be written leaves what was there, and nothing beside it."""
    place = tmp_path / "place"
    with written_whole(place) as fresh:
        fresh.write_text("first")
        assert not place.exists()
    with pytest.raises(ZeroDivisionError), written_whole(place) as fresh:
        fresh.write_text("second")
        raise ZeroDivisionError
    assert place.read_text() == "first"
    assert list(tmp_path.iterdir()) == [place]
