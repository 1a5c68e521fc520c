"""Sound files as soundfile and soxr read them: formats, rates, channels."""

from __future__ import annotations

import io

import numpy as np
import pytest

from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.multimodal.media import read_sound

pytestmark = pytest.mark.heavy
RATE = 16_000


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    """440 Hz, float32 (n,)."""
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def file(kind: str, rate: int, channels: int = 1) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, np.stack([tone(rate)] * channels, axis=1), rate, format=kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_the_same_sound(kind: str, rate: int, channels: int) -> None:
    """A second of a tone stays one, at the model's rate, mono: as long, as loud, in phase."""
    pytest.importorskip("soxr")
    found = read_sound(file(kind, rate, channels), RATE).samples
    assert found.dtype == np.float32
    assert abs(len(found) - RATE) < RATE * 0.1  # a coder adds its frame
    n = min(len(found), RATE) - 400
    want = tone(RATE)
    best = max(
        float(np.corrcoef(found[200 + shift : n + shift], want[200:n])[0, 1]) for shift in range(-36, 37) if n + shift
    )
    assert best > 0.99
    assert 0.9 < np.abs(found[200:n]).max() / 0.5 < 1.1


def test_a_wrong_rate() -> None:
    """A header that says 1 Hz, or a rate that is none, is refused before anything is resampled."""
    raw = bytearray(file("WAV", 16_000))
    raw[24:28] = (1).to_bytes(4, "little")
    with pytest.raises(InvalidRequest, match="rate"):
        read_sound(bytes(raw), RATE)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_sound(file("FLAC", 16_000)[:40], RATE)
