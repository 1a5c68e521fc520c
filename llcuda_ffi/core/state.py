"""The state of a context, whole or of one sequence, as bytes and in files.

libllama's own state says little about where it belongs. Here it comes after a header: the model, the bundle's ABI and
the settings that give the state its layout, the tokens, and a SHA-256. A state that does not belong to a context is
refused before libllama sees it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..enums import StateSeqFlags
from ..errors import BackendFailure, InvalidRequest, UnsupportedByBundle, UnsupportedModel
from ..native.log import Listener, listen
from ..params import UINT32_MAX, integer
from ..regular_file import open_regular, written_whole
from .context import Context
from .sequence_state import SequenceState, StateLayout
from .state_check import check_context, check_sequence
from .state_key import state_key

MAGIC = b"LLCUDAFFISTATE01"


@dataclass(frozen=True)
class SavedState:
    """A saved state.

    Attributes:
        header: what it belongs to.
        tokens: int32, the tokens that the caller saved with it.
        data: libllama's bytes.
    """

    header: dict[str, Any]
    tokens: npt.NDArray[np.int32]
    data: bytes | bytearray

    @property
    def whole(self) -> bool:
        """Whether it holds all sequences of a context."""
        return bool(self.header["kind"] == "context")

    @property
    def partial(self) -> bool:
        """Whether it holds only what of a sequence cannot be rolled back."""
        return bool(self.header.get("partial_only"))

    def to_bytes(self) -> bytes:
        """Header, tokens and data in one piece."""
        head = json.dumps(self.header, sort_keys=True).encode()
        tokens = self.tokens.astype("<i4").tobytes()
        body = b"".join([len(head).to_bytes(8, "little"), head, len(tokens).to_bytes(8, "little"), tokens, self.data])
        return MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview) -> SavedState:
        """The state in `raw`.

        Raises:
            InvalidRequest: no saved state, cut short, or changed.
        """
        view = memoryview(raw).cast("B")
        start = len(MAGIC) + 32
        if len(view) < start + 16 or bytes(view[: len(MAGIC)]) != MAGIC:
            raise InvalidRequest("this is no state saved by llcuda_ffi")
        if hashlib.sha256(view[start:]).digest() != bytes(view[len(MAGIC) : start]):
            raise InvalidRequest("the saved state is damaged: its SHA-256 is not the one that it was saved with")
        n = int.from_bytes(view[start : start + 8], "little")
        at = start + 8 + n
        size = int.from_bytes(view[at : at + 8], "little")
        try:
            header = json.loads(bytes(view[start + 8 : at]))
            tokens = np.frombuffer(view[at + 8 : at + 8 + size], "<i4").astype(np.int32)
        except (ValueError, RecursionError):
            header, tokens = None, np.zeros(0, np.int32)
        if not _sound(header) or tokens.nbytes != size:
            raise InvalidRequest("this is no state saved by llcuda_ffi: its parts do not fit each other")
        return cls(header, tokens, bytes(view[at + 8 + size :]))


def _sound(header: Any) -> bool:
    """Whether a header has what is read of it without being compared with a context."""
    if not isinstance(header, dict) or header.get("kind") not in ("context", "sequence"):
        return False
    sizes = [header.get(name) for name in ("n_stream", "partial_size")]
    return all(size is None or (type(size) is int and 0 <= size <= UINT32_MAX) for size in sizes)


def state_size(context: Context, seq_id: int | None = None, *, partial_only: bool = False) -> int:
    """Bytes of the state of a context, or of one of its sequences (or of its partial state), without the header."""
    with context.exclusive():
        pointer, lib = context.pointer, context.model.library.lib
        if seq_id is None:
            return int(lib.llama_state_get_size(pointer))
        flags = StateSeqFlags.PARTIAL_ONLY if partial_only else StateSeqFlags.NONE
        return int(lib.llama_state_seq_get_size_ext(pointer, _sequence(context, seq_id), int(flags)))


def save_state(
    context: Context,
    seq_id: int | None = None,
    *,
    tokens: Iterable[int] = (),
    partial_only: bool = False,
) -> SavedState:
    """Save the KV cache (or recurrent state) of a context, or of one sequence (llama_state_*_get_data).

    Args:
        seq_id: the sequence; None saves all of them.
        tokens: kept with the state, to know later what it stands for.
        partial_only: of a sequence, only what cannot be rolled back (recurrent state, sliding window).

    Raises:
        InvalidRequest: a sequence that is not there.
        UnsupportedModel: the model has no memory.
        BackendFailure: libllama could not give the state.
    """
    ids = context.model.vocab.ids(list(tokens))
    if seq_id is not None:
        data = bytes(read_sequence(context, seq_id, partial_only=partial_only))
        header = _header(context, "sequence", partial_only)
        if not partial_only:
            header["partial_size"] = state_size(context, seq_id, partial_only=True)
        return SavedState(header, ids, data)
    if partial_only:
        raise InvalidRequest("partial_only goes with a sequence: name seq_id")
    with context.exclusive(), listen() as heard:
        pointer, library = context.pointer, context.model.library
        ffi, lib = library.ffi, library.lib
        _needs_memory(context)
        size = lib.llama_state_get_size(pointer)
        buffer = np.empty(size, np.uint8).data
        got = lib.llama_state_get_data(pointer, ffi.from_buffer("uint8_t[]", buffer), size)
        return SavedState(_header(context, "context", False), ids, bytes(buffer[: _filled(size, got, heard)]))


def read_sequence(context: Context, seq_id: int, *, partial_only: bool = False) -> memoryview:
    """The state of one sequence as libllama's bytes, without a header (llama_state_seq_get_data_ext).

    Waits for what is being computed, but not for a copy between sequences: that happens with the next decode.

    Raises:
        As `save_state`.
    """
    flags = StateSeqFlags.PARTIAL_ONLY if partial_only else StateSeqFlags.NONE
    with context.exclusive(), listen() as heard:
        pointer, library = context.pointer, context.model.library
        ffi, lib = library.ffi, library.lib
        _needs_memory(context)
        seq = _sequence(context, seq_id)
        size = lib.llama_state_seq_get_size_ext(pointer, seq, int(flags))
        buffer = np.empty(size, np.uint8).data  # a bytearray would be written twice: that took most of the time
        got = lib.llama_state_seq_get_data_ext(pointer, ffi.from_buffer("uint8_t[]", buffer), size, seq, int(flags))
        return buffer[: _filled(size, got, heard)]


def _filled(size: int, got: int, heard: Listener) -> int:
    if not 0 < got <= size:
        raise BackendFailure(f"libllama gave no state{heard.why()}")
    return got


def write_sequence(
    context: Context, seq_id: int, data: bytes | bytearray | memoryview, *, partial_only: bool = False
) -> None:
    """Put bytes of `read_sequence` back (llama_state_seq_set_data_ext); only bytes known to be of such a context.

    The outputs of the last batch stay.

    Raises:
        BackendFailure: libllama could not restore them (most often: no room).
    """
    flags = StateSeqFlags.PARTIAL_ONLY if partial_only else StateSeqFlags.NONE
    with context.exclusive(), listen() as heard:
        pointer, library = context.pointer, context.model.library
        ffi, lib = library.ffi, library.lib
        _needs_memory(context)
        seq = _sequence(context, seq_id)
        source = ffi.from_buffer("uint8_t[]", data)
        got = lib.llama_state_seq_set_data_ext(pointer, source, len(data), seq, int(flags))
        if not got or got != len(data):
            raise BackendFailure(f"libllama could not restore the state (is there room for it?){heard.why()}")


def restore_state(context: Context, state: SavedState, seq_id: int | None = None) -> npt.NDArray[np.int32]:
    """Put a saved state back; what the context, or the sequence, held is replaced (llama_state_*_set_data).

    Logits are not part of it: decode at least one token before sampling.

    Args:
        seq_id: the sequence that receives a sequence's state, which may be another one than it came from.

    Returns:
        the tokens saved with it.

    Raises:
        InvalidRequest: the state belongs to another model, ABI or kind of context, or its counts and sizes are not
            those of a state; nothing was changed.
        BackendFailure: libllama could not restore it (most often: no room); the sequence is then empty.
    """
    if not isinstance(state, SavedState):
        raise InvalidRequest(f"restore_state takes a SavedState, not {type(state).__name__}")
    if state.whole != (seq_id is None):
        wants = "no seq_id: it holds a whole context" if state.whole else "a seq_id: it holds one sequence"
        raise InvalidRequest(f"this state wants {wants}")
    _needs_memory(context)
    _check_header(context, state.header)
    _check_data(context, state, seq_id or 0)
    with context.exclusive(), listen() as heard:
        pointer, library = context.pointer, context.model.library
        ffi, lib = library.ffi, library.lib
        separate = context.n_seq_max > 1 and not context.kv_unified
        if seq_id is None and separate and not context.model.library.profile.has("llama_set_adapters_lora"):
            # seen on b7698: libllama reports success and then computes wrong logits
            raise UnsupportedByBundle(
                f"bundle {context.model.library.bundle.name} does not restore several sequences at once correctly: "
                "restore them one by one (seq_id), make the context with kv_unified=True, or use bundle v0.5.0-cpu"
            )
        if seq_id is None:
            got = lib.llama_state_set_data(pointer, ffi.from_buffer("uint8_t[]", state.data), len(state.data))
            context.forget_outputs()
            if not got or got != len(state.data):
                raise BackendFailure(f"libllama could not restore the state (is there room for it?){heard.why()}")
    if seq_id is not None:
        write_sequence(context, seq_id, _moved(context, state), partial_only=state.partial)
        context.forget_outputs()
    tokens: npt.NDArray[np.int32] = state.tokens.copy()
    return tokens


def save_state_file(
    context: Context,
    path: str | os.PathLike[str],
    seq_id: int | None = None,
    *,
    tokens: Iterable[int] = (),
) -> Path:
    """`save_state` into a file, which appears whole or not at all."""
    target = Path(path)
    raw = save_state(context, seq_id, tokens=tokens).to_bytes()
    with written_whole(target) as fresh:
        fresh.write_bytes(raw)
    return target


def load_state_file(context: Context, path: str | os.PathLike[str], seq_id: int | None = None) -> npt.NDArray[np.int32]:
    """`restore_state` from a file.

    Raises:
        InvalidRequest: the file cannot be read, or as for `restore_state`.
    """
    try:
        with open_regular(path) as file:
            raw = file.read()
    except OSError as error:
        raise InvalidRequest(f"the state file {path} cannot be read: {error.strerror}") from error
    return restore_state(context, SavedState.from_bytes(raw), seq_id)


def _sequence(context: Context, seq_id: int) -> int:
    return integer("a sequence id", seq_id, 0, context.n_seq_max - 1)


def _needs_memory(context: Context) -> None:
    if context.memory is None:
        raise UnsupportedModel(f"{context.model.path.name} keeps no memory between batches: it has no state")


def saved_checkpoint(context: Context, tokens: npt.NDArray[np.int32], data: memoryview) -> SavedState:
    """A partial state read here before (`read_sequence`), with what it belongs to."""
    return SavedState(_header(context, "sequence", True), tokens, bytes(data))


def checkpoint_data(context: Context, state: SavedState) -> bytes | bytearray:
    """The bytes of a saved checkpoint, for this context.

    Raises:
        InvalidRequest: it belongs to another model, ABI or kind of context.
    """
    if not state.partial:
        raise InvalidRequest("this state is no checkpoint: it holds a whole sequence")
    _check_header(context, state.header)
    _check_data(context, state, 0)
    return _moved(context, state)


def _check_data(context: Context, state: SavedState, seq_id: int) -> None:
    """Look at what libllama would believe.

    Raises:
        InvalidRequest: it is no state of this kind of model.
    """
    layout = StateLayout.of(context)
    latent = any(key.endswith(".attention.kv_lora_rank") for key in context.model.metadata)

    def check(data: bytes | bytearray, n_stream: int) -> None:
        if state.whole:
            check_context(data, layout, context.n_seq_max, latent=latent)
        else:
            check_sequence(data, layout, n_stream, latent=latent, partial=state.partial)

    try:
        check(state.data, state.header.get("n_stream") or layout.n_stream)
    except InvalidRequest:
        own = save_state(context, None if state.whole else seq_id, partial_only=state.partial)
        try:
            check(own.data, layout.n_stream)
        except InvalidRequest:
            return  # a kind of memory that is not known here
        raise


def _moved(context: Context, state: SavedState) -> bytes | bytearray:
    """A sequence's state for the streams that this context has."""
    layout, streams = StateLayout.of(context), state.header.get("n_stream")
    if streams is None or streams == layout.n_stream:
        return state.data
    if state.partial:
        return SequenceState.parse_partial(state.data, layout).partial_bytes(layout.n_stream)
    return SequenceState.parse(state.data, layout, state.header.get("partial_size") or 0).to_bytes(layout.n_stream)


def _header(context: Context, kind: str, partial_only: bool) -> dict[str, Any]:
    """What must agree between a state and a context."""
    header: dict[str, Any] = {"kind": kind, "partial_only": bool(partial_only), **state_key(context)}
    if kind == "sequence":  # may differ: states are moved between contexts of other sequences
        header["n_stream"] = StateLayout.of(context).n_stream
    else:
        header |= {"n_ctx": context.n_ctx, "n_seq_max": context.n_seq_max, "kv_unified": context.kv_unified}
    return header


def _check_header(context: Context, header: Mapping[str, Any]) -> None:
    for key, value in _header(context, header["kind"], header.get("partial_only", False)).items():
        if header.get(key) != value and key != "n_stream":
            raise InvalidRequest(
                f"the state was saved with {key} {header.get(key)!r}, this context has {value!r}: "
                "restore it into a context of the same model, bundle, adapters and settings"
            )
