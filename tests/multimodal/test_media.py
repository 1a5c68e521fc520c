"""Images and sounds as users have them: what is read, what is refused, and within which bounds."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image as Pillow

from llcuda_ffi.errors import InvalidRequest
from llcuda_ffi.multimodal.media import Base64, read_image, read_sound

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)


def png(array: Any = PIXELS, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(array).save(out, kind, **more)
    return out.getvalue()


def test_the_same_pixels_from_everything(tmp_path: Path) -> None:
    """Arrays, PIL images, files, bytes and data URLs of one picture give the same pixels."""
    (tmp_path / "a.png").write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    for value in (PIXELS, Pillow.fromarray(PIXELS), png(), tmp_path / "a.png", str(tmp_path / "a.png"), url):
        found = read_image(value).pixels
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert np.array_equal(found, PIXELS)
    assert np.array_equal(read_image(PIXELS[:, ::-1]).pixels, PIXELS[:, ::-1])
    assert np.array_equal(read_image(PIXELS / 255.0).pixels, PIXELS)
    assert read_image(PIXELS[:, :, 0]).pixels.shape == (6, 9, 3)


def test_upright_and_on_white() -> None:
    """EXIF's rotation is applied, transparent parts are white."""
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_image(png(exif=exif)).pixels.shape == (9, 6, 3)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (read_image(clear).pixels == 255).all()
    assert (read_image(png(clear)).pixels == 255).all()


def test_ways_of_writing_a_data_url() -> None:
    """Capitals, line breaks, percent signs, the other alphabet, no padding, any or no MIME type."""
    text = base64.b64encode(png()).decode()
    for url in (
        f"DATA:IMAGE/PNG;BASE64,{text}",
        f" data:;base64,{text}\n",
        f"data:text/plain;charset=utf-8;base64,{text}",
        "data:image/png;base64," + "\n".join(text[i : i + 60] for i in range(0, len(text), 60)),
        "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "data:image/png;base64," + text.replace("+", "-").replace("/", "_").rstrip("="),
        "data:image/png," + quote_from_bytes(png()),
    ):
        assert np.array_equal(read_image(url).pixels, PIXELS), url[:40]


def test_sixteen_bits_and_other_modes() -> None:
    """16 bits are scaled, not cut off at 255; every mode of Pillow's is read; EXIF that is damaged is left aside."""
    deep = (np.arange(6 * 9).reshape(6, 9) * 1200).astype(np.uint16)
    for value in (png(deep), Pillow.fromarray(deep), Pillow.fromarray(deep).convert("I")):
        assert np.array_equal(read_image(value).pixels[:, :, 0], (deep >> 8).astype(np.uint8))
    whole = Pillow.fromarray(PIXELS)
    others = [whole.convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LA", "RGBX", "F", "I")]
    others += [
        whole.convert("RGBA").convert("RGBa"),
        whole.convert("LA").convert("La"),
        whole.convert("P").convert("PA"),
    ]
    for image in others:
        assert read_image(image).pixels.shape == PIXELS.shape, image.mode
    assert np.array_equal(read_image(png(exif=b"Exif\0\0nothing that is")).pixels, PIXELS)
    frames = [Pillow.fromarray(PIXELS[::-1])]
    for kind in ("PNG", "WEBP"):
        animated = png(kind=kind, save_all=True, append_images=frames, lossless=True)
        assert np.array_equal(read_image(animated).pixels, PIXELS)


def test_tensors_and_open_files(tmp_path: Path) -> None:
    """What numpy can read as an array, and files that are open; those that are not are told."""

    class Tensor:
        def __init__(self, array: Any) -> None:
            self._array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            if self._array is None:
                raise TypeError("it is on a device")
            return self._array

    assert np.array_equal(read_image(Tensor(PIXELS)).pixels, PIXELS)
    assert np.array_equal(read_image((PIXELS / 255).astype(">f4")).pixels, PIXELS)
    assert np.array_equal(read_image(io.BytesIO(png())).pixels, PIXELS)
    closed = Pillow.open(io.BytesIO(png()))
    closed.close()
    half = Pillow.open(io.BytesIO(png(kind="JPEG")[:640]))
    for value in (Tensor(None), io.StringIO("a"), closed, half, tmp_path, "a\0b"):
        with pytest.raises(InvalidRequest):
            read_image(value)


def bomb(width: int, height: int) -> bytes:
    """A PNG file that says it is large; its data are a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (bomb(50_000, 50_000), "too large"),
        (bomb(10, 10), "cannot be read"),
        (png()[:60], "cannot be read"),
        (b"", "bytes"),
        (b"not an image at all", "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        ("http://127.0.0.1/a.png", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("/no/such/file.png", "cannot be read"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png;base64,\udcff", "base64"),
        ("data:image/png,\udcff", "cannot be read"),
        (Base64("\udcff"), "base64"),
        ("data:image/png", "no data"),
        ("iVBORw0KGgo" * 30, "base64 as a data: URL"),
        (np.zeros((0, 5, 3), np.uint8), "pixels"),
        (np.zeros((3, 3, 7), np.uint8), "shape"),
        (np.zeros((3, 3, 3), np.int64), "shape"),
        (np.full((3, 3, 3), np.nan), "0 to 1"),
        (17, "path"),
        (None, "path"),
    ],
    ids=range(21),
)
def test_refused(value: Any, word: str) -> None:
    """One clear exception each, before anything large is allocated."""
    with pytest.raises(InvalidRequest, match=word):
        read_image(value)


def test_every_damaged_png_is_told() -> None:
    """A file with any byte changed is read, or refused by our exception."""
    whole = png(PIXELS, "JPEG")
    rng = np.random.default_rng(1)
    for raw in (png(), whole):
        for _ in range(150):
            damaged = bytearray(raw)
            damaged[rng.integers(len(raw))] = rng.integers(256)
            try:
                assert read_image(bytes(damaged)).pixels.ndim == 3
            except InvalidRequest:
                pass


def test_sounds() -> None:
    """Samples of any number type and several channels become mono floats; what is no sound is refused."""
    two = np.stack([np.ones(1600), -np.ones(1600)], axis=1).astype(np.float32)
    assert np.array_equal(read_sound((two, 16_000), 16_000).samples, np.zeros(1600, np.float32))
    ints = read_sound((np.full(1600, 32767, np.int16), 16_000), 16_000).samples
    assert ints.dtype == np.float32
    assert np.allclose(ints, 1)
    wave = np.sin(np.arange(1600) / 9).astype(np.float32)
    for value in (
        (16_000, (wave * 32767).astype(np.int16)),
        (wave, 16_000.0),
        (np.stack([wave, wave]), 16_000),
        (wave[:, None], np.int64(16_000)),
        ((wave * 127 + 128).astype(np.uint8), 16_000),
        (wave.tolist(), 16_000),
    ):
        assert np.abs(read_sound(value, 16_000).samples - wave).max() < 0.02
    for value, word in (
        ((np.zeros(0, np.float32), 16_000), "empty"),
        (([0, 100, -100], 16_000), "int16 or int32"),
        ((np.zeros(1600, np.uint64), 16_000), "int16 or int32"),
        ((np.zeros(1600, np.float32), "16000"), "rate"),
        ((np.zeros(5, complex), 16_000), "numbers"),
        ((np.zeros(1600, np.float32), 1), "rate"),
        ((np.full(1600, np.nan, np.float32), 8_000), "-1 to 1"),
        ((np.full(1600, 1e30, np.float32), 16_000), "-1 to 1"),
        ((np.full(1600, 20_000, np.float32), 16_000), "divide them"),
        ((np.zeros(16_000 * 60 * 31, np.float32), 16_000), "too long"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            read_sound(value, 16_000)
