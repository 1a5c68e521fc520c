"""A multimodal projector (an mmproj file): images and sound in, embeddings for one text model out (libmtmd).

libmtmd does not check what it is given and ends the process on much of it; here every size is checked first, and each
embedding must be a finite number before it may reach the text model.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendFailure, InvalidModelFile, InvalidRequest, ModelError, ModelNotFound, UnsupportedModel
from ..gguf import GGUFReader
from ..native import mtmd
from ..native.handle import Handle, in_flight
from ..native.log import listen
from ..params import integer
from .model import Model
from .trial import tried
from .vocab import encode

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]

MOST_PIXELS = 1 << 25  # of one image, 33 megapixels: libmtmd copies them as float32 several times
MOST_SAMPLES = 16_000 * 60 * 30  # of one sound: half an hour
_REFUSED = {"voxtral": "libmtmd ends the process on its audio (its pooling is wrong there)"}
_MARK = re.compile(rb"<\|?[a-z_]{3,}\|?>")


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels: uint8 (height, width, 3), RGB, contiguous."""

    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples: float32 (n,), mono, at the projector's `sample_rate`, −1 to 1."""

    samples: Floats


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a prompt.

    Attributes:
        parse_special: read the text of control tokens as those tokens.
    """

    text: str
    parse_special: bool = False


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens, int32 (n,)."""

    tokens: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class MediaChunk:
    """A piece of an image or of a sound, as embeddings.

    Attributes:
        media: which of the given media it belongs to, and its number among the chunks of that.
        embeddings: float32 (n, n_embd_inp).
        positions: int32 (4, n) from 0: t, y, x, z of M-RoPE; None where each embedding takes the next position.
        n_pos: positions that it takes.
        whole: it attends to itself in both directions, so all of it must be computed at once.
    """

    media: tuple[int, int]
    embeddings: Floats
    positions: Positions | None
    n_pos: int
    whole: bool


class Projector(Handle):
    """An mmproj file, loaded for one text model (struct mtmd_context). One thread at a time encodes; others wait.

    Attributes:
        path: its file.
        model: the text model.
        sees, hears: what it takes.
        sample_rate: of sound, in Hz; 0 where it does not hear.
    """

    def __init__(
        self,
        model: Model,
        path: str | os.PathLike[str],
        *,
        n_threads: int = 4,
        use_gpu: bool = True,
        image_max_tokens: int | None = None,
        warmup: bool = False,
    ) -> None:
        """Load an mmproj file (mtmd_init_from_file).

        Args:
            n_threads: CPU threads of the encoder.
            use_gpu: encode on the first GPU, where there is one.
            image_max_tokens: most tokens of an image, for models with a choice.
            warmup: encode a test image at once.

        Raises:
            UnsupportedByBundle: the loaded bundle has no libmtmd.
            ModelNotFound: no such file.
            InvalidModelFile: it is broken, no projector, or ended the process that tried it.
            UnsupportedModel: libmtmd is known to fail with it.
            ModelError: it does not fit the text model; the message carries the log.
        """
        if not isinstance(model, Model):
            raise InvalidRequest(f"a projector is loaded for a Model, not for {type(model).__name__}")
        if model.params.vocab_only:
            raise InvalidRequest("this model was loaded with vocab_only=True: no projector can be used with it")
        lib, ffi = mtmd.functions(model.library), model.library.ffi
        place = Path(path)
        _check_file(place)
        with tried([model.path], model.params, projector=place):
            pass
        params = ffi.new("struct mtmd_context_params *", lib.mtmd_context_params_default())
        params.use_gpu, params.print_timings, params.warmup = use_gpu, False, warmup
        params.n_threads = integer("n_threads", n_threads, 1, 512)
        if image_max_tokens is not None:
            params.image_max_tokens = integer("image_max_tokens", image_max_tokens, 1, 1 << 16)
        with model.shared():
            made, heard = self._make(
                lib.mtmd_init_from_file, (os.fsencode(place), model.pointer, params[0]), lib.mtmd_free, model
            )
            width = int(model.library.lib.llama_model_n_embd_inp(model.pointer))
        if not made:
            raise ModelError(f"the projector {place} does not fit {model.path.name}{heard.why()}")
        self.path, self.model = place, model
        self._ffi, self._lib, self._width = ffi, lib, width
        self._encoding = threading.Lock()
        with self.shared():
            pointer = self.pointer
            self.sees = bool(lib.mtmd_support_vision(pointer))
            self.hears = bool(lib.mtmd_support_audio(pointer))
            self.sample_rate = max(0, int(lib.mtmd_get_audio_sample_rate(pointer)))
            self._mrope = bool(lib.mtmd_decode_use_mrope(pointer))

    def __repr__(self) -> str:
        what = " and ".join(name for name, has in (("images", self.sees), ("sound", self.hears)) if has)
        return f"<Projector {self.path.name}: {what}{' closed' if self.closed else ''}>"

    @property
    def functions(self) -> Any:
        """libmtmd's functions, for who calls them itself with `pointer`."""
        return self._lib

    @property
    def moves_positions(self) -> bool:
        """Whether an image takes other positions than one for each embedding (M-RoPE)."""
        return self._mrope

    def encode(
        self, parts: Sequence[TextPart | Image | Sound], *, add_special: bool = True
    ) -> list[TokenChunk | MediaChunk]:
        """What a prompt of texts, images and sounds becomes (mtmd_tokenize_from_parts, mtmd_encode_chunk).

        The model's own marks (begin and end of an image, rows, tiles) come as tokens around it.

        Raises:
            InvalidRequest: a medium that the projector does not take, or of a size that it cannot.
            BackendFailure: the encoder failed, or gave numbers that are none.
        """
        for part in parts:
            self._check(part)
        with self._encoding, self.shared(), in_flight():
            return self._encode(parts, add_special)

    def try_out(self) -> None:
        """Encode one piece of a small image and of a second of sound, as far as it takes them.

        Raises:
            InvalidRequest, BackendFailure: as `encode`.
        """
        media: list[Image | Sound] = []
        if self.sees:
            media.append(Image(np.full((48, 64, 3), 128, np.uint8)))
        if self.hears:
            media.append(Sound(np.zeros(self.sample_rate, np.float32)))
        for medium in media:
            with self._encoding, self.shared():
                self._encode([medium], False, most=1)

    def _check(self, part: TextPart | Image | Sound) -> None:
        if isinstance(part, Image):
            if not self.sees:
                raise InvalidRequest(f"{self.path.name} takes no images")
            pixels = part.pixels
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.flags.c_contiguous:
                raise InvalidRequest(
                    f"an image must be contiguous uint8 of shape (height, width, 3), not {pixels.dtype} {pixels.shape}"
                )
            if not 1 <= pixels.shape[0] * pixels.shape[1] <= MOST_PIXELS:
                raise InvalidRequest(
                    f"an image must have 1 to {MOST_PIXELS} pixels, not {pixels.shape[1]} × {pixels.shape[0]}"
                )
        elif isinstance(part, Sound):
            if not self.hears:
                raise InvalidRequest(f"{self.path.name} takes no sound")
            samples = part.samples
            if samples.dtype != np.float32 or samples.ndim != 1 or not samples.flags.c_contiguous:
                raise InvalidRequest(f"a sound must be contiguous float32 of shape (n,), not {samples.dtype}")
            if not self.sample_rate // 10 <= len(samples) <= MOST_SAMPLES:
                raise InvalidRequest(
                    f"a sound must last 0.1 s to {MOST_SAMPLES / max(1, self.sample_rate):.0f} s at {self.sample_rate} "
                    f"Hz, not {len(samples)} samples"
                )
            if not np.isfinite(samples).all():
                raise InvalidRequest("the samples of a sound must be finite numbers")
        elif not isinstance(part, TextPart):
            raise InvalidRequest(f"a part of a prompt is text, an image or a sound, not {type(part).__name__}")

    def _encode(
        self, parts: Sequence[TextPart | Image | Sound], add_special: bool, most: int | None = None
    ) -> list[TokenChunk | MediaChunk]:
        ffi, lib, pointer = self._ffi, self._lib, self.pointer
        keep: list[Any] = []
        native = []
        which: dict[str, int] = {}
        for i, part in enumerate(parts):
            one = ffi.new("struct mtmd_input_part *")
            if isinstance(part, TextPart):
                raw = encode(part.text)
                text = ffi.new("struct mtmd_input_text *")
                buffer = ffi.new("char[]", raw)
                text.text, text.text_len, text.parse_special = buffer, len(raw), part.parse_special
                one.text = text
                keep += [buffer, text]
            else:
                bitmap = self._bitmap(part)
                identifier = f"{len(which)}"
                which[identifier] = len(which)
                lib.mtmd_bitmap_set_id(bitmap, identifier.encode())
                one.bitmap = bitmap
                keep.append(bitmap)
            native.append(one)
            keep.append(i)
        chunks = ffi.gc(lib.mtmd_input_chunks_init(), lib.mtmd_input_chunks_free)
        with listen() as heard:
            array = ffi.new("struct mtmd_input_part *[]", native)
            code = lib.mtmd_tokenize_from_parts(pointer, chunks, array, len(native), add_special)
        if code:
            raise InvalidRequest(f"{self.path.name} cannot take these media (code {code}){heard.why()}")
        only_media = not any(isinstance(part, TextPart) for part in parts)
        return self._chunks(chunks, which, most, only_media)

    def _bitmap(self, part: Image | Sound) -> Any:
        ffi, lib = self._ffi, self._lib
        if isinstance(part, Image):
            height, width, _ = part.pixels.shape
            made = lib.mtmd_bitmap_init(width, height, ffi.from_buffer("unsigned char[]", part.pixels))
        else:
            made = lib.mtmd_bitmap_init_from_audio(len(part.samples), ffi.from_buffer("float[]", part.samples))
        if not made:
            raise BackendFailure("libmtmd could not take the image or sound: out of memory?")
        return ffi.gc(made, lib.mtmd_bitmap_free)

    def _check_marks(self, ids: npt.NDArray[np.int32]) -> None:
        """Check that what libmtmd writes around a medium is tokens of its own, not the letters of their names."""
        pieces = [self.model.vocab.piece(int(token), special=True) for token in ids]
        spelled = _MARK.search(b"".join(piece for piece in pieces if not _MARK.fullmatch(piece)))
        if spelled:
            mark = spelled[0].decode()
            raise ModelError(
                f"{self.path.name} writes {mark}, no token of {self.model.path.name}: it belongs to another model"
            )

    def _chunks(
        self, chunks: Any, which: dict[str, int], most: int | None, only_media: bool
    ) -> list[TokenChunk | MediaChunk]:
        ffi, lib, pointer = self._ffi, self._lib, self.pointer
        found: list[TokenChunk | MediaChunk] = []
        numbers: dict[int, int] = {}
        for i in range(lib.mtmd_input_chunks_size(chunks)):
            chunk = lib.mtmd_input_chunks_get(chunks, i)
            n = int(lib.mtmd_input_chunk_get_n_tokens(chunk))
            kind = lib.mtmd_input_chunk_get_type(chunk)
            if kind == lib.MTMD_INPUT_CHUNK_TYPE_TEXT:
                size = ffi.new("size_t *")
                tokens = lib.mtmd_input_chunk_get_tokens_text(chunk, size)
                ids = (
                    np.frombuffer(ffi.buffer(tokens, 4 * size[0]), np.int32).copy()
                    if size[0]
                    else np.empty(0, np.int32)
                )
                if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.model.vocab.n_tokens):
                    raise ModelError(
                        f"{self.path.name} writes marks that the vocabulary of {self.model.path.name} lacks: it "
                        "belongs to another model"
                    )
                if only_media:
                    self._check_marks(ids)
                found.append(TokenChunk(ids))
                continue
            medium = which[ffi.string(lib.mtmd_input_chunk_get_id(chunk)).decode()]
            number = numbers[medium] = numbers.get(medium, -1) + 1
            found.append(self._media(pointer, chunk, n, (medium, number), kind == lib.MTMD_INPUT_CHUNK_TYPE_IMAGE))
            if most is not None and number + 1 >= most:
                break
        return found

    def _media(self, pointer: Any, chunk: Any, n: int, media: tuple[int, int], image: bool) -> MediaChunk:
        ffi, lib = self._ffi, self._lib
        with listen() as heard:
            code = lib.mtmd_encode_chunk(pointer, chunk)
        if code:
            raise BackendFailure(f"{self.path.name} could not encode a medium (code {code}){heard.why()}")
        output = lib.mtmd_get_output_embd(pointer)
        embeddings = np.frombuffer(ffi.buffer(output, 4 * n * self._width), np.float32).reshape(n, self._width).copy()
        if not np.isfinite(embeddings).all():
            raise BackendFailure(
                f"{self.path.name} gives embeddings that are not finite numbers: the file is damaged, or the medium is"
            )
        n_pos = int(lib.mtmd_input_chunk_get_n_pos(chunk))
        positions = None
        if self._mrope:
            positions = np.tile(np.arange(n, dtype=np.int32), (4, 1))
            if image:
                tokens = lib.mtmd_input_chunk_get_tokens_image(chunk)
                for i in range(n):
                    at = lib.mtmd_image_tokens_get_decoder_pos(tokens, 0, i)
                    positions[:, i] = at.t, at.y, at.x, at.z
        whole = bool(lib.mtmd_decode_use_non_causal(pointer, chunk))
        return MediaChunk(media, embeddings, positions, n_pos, whole)


def _check_file(path: Path) -> None:
    """What tells a projector from another file, and what libmtmd is known to end the process on."""
    if not path.is_file():
        raise ModelNotFound(f"there is no projector {path}")
    with GGUFReader(path) as reader:
        architecture = reader.metadata.get("general.architecture")
        if architecture != "clip":
            raise InvalidModelFile(
                f"{path} is no projector: its architecture is {architecture!r}, an mmproj file has 'clip'"
            )
        for key in ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type"):
            kind = reader.metadata.get(key)
            if isinstance(kind, str) and kind in _REFUSED:
                raise UnsupportedModel(f"{path} has a {kind} projector: {_REFUSED[kind]}")
