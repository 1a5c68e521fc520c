"""Images and sounds as users have them, read within bounds: what libmtmd gets is pixels and samples only."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import math
import os
import re
import struct
import warnings
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt

from ..core.projector import MOST_PIXELS, MOST_SAMPLES, Image, Sound
from ..errors import InvalidRequest, MissingExtra
from ..regular_file import open_regular

MOST_BYTES = 64 << 20  # of a file or of its base64 text
MOST_CHANNELS = 16
LOUDEST = 64  # of a sample that should be at most 1, or little more: beyond it are integers that were cast to floats
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{200,}={0,2}\s*")  # longer than names of files mostly are
_URL_SAFE = str.maketrans("-_", "+/")
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of the first frame


def read_image(value: Any) -> Image:
    """An image as pixels, upright, without transparency.

    Args:
        value: a path, the bytes of a PNG, JPEG, WebP, GIF or BMP file, an open file, a "data:" URL, Base64, a PIL
            image, or an array or tensor: uint8 (height, width), (height, width, 3) or (height, width, 4), or floats
            from 0 to 1 of these shapes.

    Raises:
        InvalidRequest: none of these, a damaged file, or one of too many bytes or pixels.
        MissingExtra: a file was given and Pillow is not installed.
    """
    if isinstance(value, Image):
        return value
    if isinstance(value, np.ndarray):
        return Image(_pixels(value))
    is_pil = hasattr(value, "convert") and hasattr(value, "size")
    if not is_pil and hasattr(value, "__array__"):  # a tensor
        return Image(_pixels(_array(value, "image")))
    pillow = _pillow()
    raw = None if is_pil else _bytes(value, "image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if raw is None:
                return Image(_upright(value))
            with pillow.Image.open(io.BytesIO(raw), formats=_FORMATS) as opened:
                return Image(_upright(opened))
    except InvalidRequest:
        raise
    except pillow.Image.DecompressionBombError:
        raise InvalidRequest(f"the image is too large: at most {MOST_PIXELS} pixels") from None
    except pillow.UnidentifiedImageError:
        raise InvalidRequest("the image cannot be read: it is no PNG, JPEG, WebP, GIF or BMP file") from None
    except Exception as error:  # Pillow raises what its decoders raise: OSError, ValueError, SyntaxError, struct.error
        raise InvalidRequest(f"the image cannot be read ({type(error).__name__}: {str(error)[:200]})") from None


def _array(value: Any, what: str) -> npt.NDArray[Any]:
    """A tensor of another library as an array."""
    try:
        return np.asarray(value)
    except Exception as error:  # of a GPU, with gradients, of a type that numpy lacks: each library has its own
        raise InvalidRequest(
            f"the {what} is a {type(value).__name__} that is no array ({str(error)[:200]}): give it as numpy's"
        ) from None


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise MissingExtra("image files need Pillow: pip install pillow, or give an array of pixels") from None
    return PIL


def _upright(image: Any) -> npt.NDArray[np.uint8]:
    """A PIL image as the camera meant it, transparent parts white, as RGB."""
    pillow = _pillow()
    width, height = image.size
    if not 1 <= width * height <= MOST_PIXELS:
        raise InvalidRequest(f"an image of {width} × {height} pixels: it must have 1 to {MOST_PIXELS}")
    with contextlib.suppress(SyntaxError, ValueError, TypeError, KeyError, struct.error):  # EXIF that is damaged
        image = pillow.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's convert would cut them off at 255
        deep = np.asarray(image, np.int64)
        return _pixels((np.clip(deep, 0, 65535) >> 8 if deep.max(initial=0) > 255 else deep.clip(0)).astype(np.uint8))
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow.Image.new("RGBA", image.size, "white")
        image = pillow.Image.alpha_composite(white, image)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), np.uint8))


def _pixels(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or float(array.min(initial=0)) < 0 or float(array.max(initial=0)) > 1:
            raise InvalidRequest("an image of floats must hold numbers from 0 to 1")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidRequest(
            f"an image array must be uint8, or floats from 0 to 1, of shape (height, width), (height, width, 3) or "
            f"(height, width, 4), not {array.dtype} {array.shape}"
        )
    if not 1 <= array.shape[0] * array.shape[1] <= MOST_PIXELS:
        raise InvalidRequest(f"an image of {array.shape[1]} × {array.shape[0]} pixels: it must have 1 to {MOST_PIXELS}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.float32) / 255
        array = np.rint(array[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(array)


def read_sound(value: Any, sample_rate: int) -> Sound:
    """A sound as mono samples at `sample_rate` Hz.

    Args:
        value: a path, the bytes of a WAV, FLAC, OGG or MP3 file, an open file, a "data:" URL, Base64, or a pair
            (samples, rate) in either order: floats from -1 to 1, or integers of 8, 16 or 32 bits and the whole range
            of their type, of shape (n,), (n, channels) or (channels, n).

    Raises:
        InvalidRequest: none of these, a damaged file, or a sound that is too long.
        MissingExtra: a file was given and soundfile is not installed; or another rate than wanted and soxr is not.
    """
    if isinstance(value, Sound):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        samples, rate = value
        if isinstance(samples, (int, np.integer)):  # as scipy gives them
            samples, rate = rate, samples
        samples = _array(samples, "sound")
        if samples.dtype.kind in "iu":
            if samples.dtype.itemsize == 8:  # what a list of integers becomes: nothing says how loud they may be
                raise InvalidRequest(
                    f"a sound of {samples.dtype} does not say what its loudest sample is: give int16 or int32 "
                    "(samples.astype('int16')), or floats from -1 to 1"
                )
            middle = 0 if samples.dtype.kind == "i" else 1 << (8 * samples.dtype.itemsize - 1)
            samples = (samples - float(middle)) / float(np.iinfo(samples.dtype).max - middle)
    else:
        samples, rate = _decoded(_bytes(value, "sound"))
    rate = _checked_rate(rate)
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2):
        raise InvalidRequest(
            f"a sound must be numbers of shape (n,), (n, channels) or (channels, n), not {samples.dtype} "
            f"{samples.shape}"
        )
    if not samples.size:
        raise InvalidRequest("the sound is empty: it has no samples")
    if samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS >= samples.shape[0]:
        samples = samples.T
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    if len(mono) * sample_rate / rate > MOST_SAMPLES:
        raise InvalidRequest(
            f"a sound of {len(mono) / rate:.0f} s is too long: at most {MOST_SAMPLES // sample_rate} s"
        )
    if not (np.abs(mono) <= LOUDEST).all():
        raise InvalidRequest(
            "the samples of a sound must be finite numbers, from -1 to 1: give integers as such, or divide them "
            "(int16 by 32768)"
        )
    if rate != sample_rate:
        try:
            import soxr
        except ImportError:
            raise MissingExtra(f"a sound at {rate} Hz must become one at {sample_rate} Hz: pip install soxr") from None
        mono = soxr.resample(np.asarray(mono, np.float32), rate, sample_rate)
    return Sound(np.ascontiguousarray(mono, np.float32))


def _checked_rate(rate: Any) -> int:
    if isinstance(rate, float) and rate.is_integer():
        rate = int(rate)
    if not isinstance(rate, (int, np.integer)) or not 1000 <= rate <= 384_000:
        raise InvalidRequest(f"a sound's rate must be 1,000 to 384,000 Hz, not {rate!r:.40}")
    return int(rate)


def _decoded(raw: bytes) -> tuple[npt.NDArray[Any], int]:
    try:
        import soundfile
    except ImportError:
        raise MissingExtra("sound files need soundfile: pip install soundfile, or give (samples, rate)") from None
    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            _checked_rate(file.samplerate)
            if file.frames > math.ceil(MOST_SAMPLES * file.samplerate / 16_000) or file.channels > MOST_CHANNELS:
                raise InvalidRequest(f"a sound of {file.frames} frames and {file.channels} channels is too large")
            return file.read(dtype="float32"), int(file.samplerate)
    except InvalidRequest:
        raise
    except soundfile.LibsndfileError:
        raise InvalidRequest("the sound cannot be read: it is no WAV, FLAC, OGG or MP3 file, or damaged") from None
    except Exception as error:
        raise InvalidRequest(f"the sound cannot be read ({type(error).__name__}: {str(error)[:200]})") from None


@dataclass(frozen=True, slots=True)
class Base64:
    """A file as base64 text, of either alphabet; what pads its end may be missing."""

    text: str


def file_bytes(value: Any, what: str) -> Any:
    """A path, an open file or bytes of any kind as bytes, at most MOST_BYTES; anything else as it is.

    Raises:
        InvalidRequest: an address, or a file that is too large or cannot be read.
    """
    if isinstance(value, (Base64, bytes)) or (isinstance(value, str) and value.lstrip()[:5].lower() == "data:"):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str) and "://" in value[:16]:
        raise InvalidRequest(
            f"{_one(what)} is not fetched from {value.split(':', 1)[0]} addresses: give bytes, a path or a data: URL"
        )
    if isinstance(value, (str, os.PathLike)):
        try:
            with open_regular(value) as file:
                size = os.fstat(file.fileno()).st_size
                raw = file.read() if size <= MOST_BYTES else b""
        except (OSError, ValueError) as error:
            if isinstance(value, str) and _BASE64.fullmatch(value):
                raise InvalidRequest(
                    f"the {what} is a text that is no path: give base64 as a data: URL (data:;base64,…), or the bytes"
                ) from None
            raise InvalidRequest(f"the {what} {str(value)[:200]} cannot be read: {error}") from None
        if size > MOST_BYTES:
            raise InvalidRequest(f"{value} has {size} bytes: {_one(what)} has at most {MOST_BYTES}")
        return raw
    if callable(getattr(value, "read", None)):
        try:
            raw = value.read(MOST_BYTES + 1)
        except Exception as error:  # whatever a stranger's file raises
            raise InvalidRequest(f"the open file of {_one(what)} cannot be read: {error}") from None
        if not isinstance(raw, bytes):
            raise InvalidRequest(f"the open file of {_one(what)} gives text: open it with mode 'rb'")
        return raw
    return value


def _bytes(value: Any, what: str) -> bytes:
    """The bytes of a file, however it is given, at most MOST_BYTES."""
    raw = file_bytes(value, what)
    if isinstance(raw, Base64):
        raw = _from_base64(raw.text, what)
    elif isinstance(raw, str):
        raw = _data_url(raw.strip(), what)
    if not isinstance(raw, bytes):
        raise InvalidRequest(
            f"{_one(what)} is a path, bytes, an open file, a data: URL or an array, not {type(value).__name__}"
        )
    if not raw or len(raw) > MOST_BYTES:
        raise InvalidRequest(f"the {what} has {len(raw)} bytes: it must have 1 to {MOST_BYTES}")
    return raw


def _one(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _data_url(url: str, what: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or len(data) > 2 * MOST_BYTES:
        raise InvalidRequest(f"the data: URL of {_one(what)} has no data, or too much")
    raw = unquote_to_bytes(data.encode("utf-8", "surrogatepass"))
    if not head.rstrip().lower().endswith(";base64"):
        return raw
    return _from_base64(raw.decode("latin-1"), what)


def _from_base64(text: str, what: str) -> bytes:
    """Bytes of a base64 text, of either alphabet; what pads its end may be missing."""
    if len(text) > 2 * MOST_BYTES:
        raise InvalidRequest(f"the {what} has more than {MOST_BYTES} bytes")
    bare = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the base64 of {_one(what)} is damaged: {error}") from None
