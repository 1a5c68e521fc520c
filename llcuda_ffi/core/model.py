"""A loaded model. It may be shared by several contexts and threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import gguf
from ..bundles import InstalledBundle
from ..enums import FType, RopeType
from ..errors import Cancelled, InvalidRequest, ModelError, ModelNotFound, UnsupportedModel
from ..native.handle import Handle, leaving
from ..native.load import Library, load
from ..native.log import interrupted, keep
from ..params import INT32_MAX, ModelParams, checked, integer, override, shown
from .model_settings import native_params
from .placement import Placement, computes_on_cuda, from_log, shortage, spare_unusable
from .trial import tried
from .vocab import Vocab, encode


class Model(Handle):
    """A model in memory (struct llama_model). Make one with `Model.load`.

    Attributes:
        path: the file, or the first of its parts.
        params: what it was loaded with.
        vocab: its vocabulary.
        library: the loaded libllama.
        n_positions: most positions that a model with learned position embeddings has (BERT, GPT-2), else None.
        placement: which layers and how many bytes are on which device.
        n_layer_mtp: layers of multi-token prediction whose weights the file has; they draft (ModelParams.load_mtp).
    """

    path: Path
    params: ModelParams
    vocab: Vocab
    library: Library
    n_positions: int | None
    placement: Placement
    n_layer_mtp: int

    def __init__(self) -> None:
        raise InvalidRequest("a Model is made by Model.load(path)")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        params: ModelParams | None = None,
        *,
        progress: Callable[[float], object] | None = None,
        bundle: InstalledBundle | None = None,
        **settings: Any,
    ) -> Model:
        """Load a GGUF file (llama_model_load_from_file).

        Args:
            path: the file; for a model split into parts the first of them, or all of them in order.
            params: settings; keywords override them.
            progress: called with the share loaded, 0 to 1; returning False, or raising, stops the load.
            bundle: the libraries to use when none is loaded yet.

        Raises:
            ModelNotFound: no such file.
            InvalidModelFile: it is not a GGUF, is broken, or ended the process that tried it (ModelParams.trial).
            UnsupportedModel: sound, but libllama could not run it.
            ModelError: libllama refused it; the message carries its log.
            Cancelled: `progress` returned False.
            LoadError, BundleError: the libraries could not be loaded.
        """
        params = override(checked("params", params, ModelParams), settings)
        if progress is not None and not callable(progress):
            raise InvalidRequest(f"progress must be a function of the share loaded, not {shown(progress)}")
        parts = [_file(p) for p in (path if isinstance(path, (list, tuple)) else [path])]
        if not parts:
            raise InvalidRequest("a model needs at least one file")
        reports = [gguf.check(part, params.kv_overrides) for part in parts]
        with tried(parts, params, bundle):
            library = load(bundle)
        params = spare_unusable(library, params)
        if computes_on_cuda(library, params):
            why = next((f"{found.path}: {found.not_on_cuda}" for found in reports if found.not_on_cuda), None)
            if why is not None:
                raise UnsupportedModel(f"{why}. device='cpu' computes it")
        ffi, lib = library.ffi, library.lib

        stopped = False

        # always installed: it is where a load ends that Ctrl-C, or another exception of a callback, interrupted
        def report(share: float, _user_data: object) -> bool:
            nonlocal stopped
            stopped = progress is not None and progress(share) is False
            return not (stopped or leaving() or interrupted())

        callback = ffi.callback("bool(float, void *)", report, error=False, onerror=keep)
        native, keep_alive = native_params(library, params)
        native.progress_callback = callback
        if len(parts) == 1:
            make, arguments = lib.llama_model_load_from_file, [os.fsencode(parts[0]), native[0]]
        else:
            names = [ffi.new("char[]", os.fsencode(p)) for p in parts]
            keep_alive.append(ffi.new("const char *[]", names))
            make, arguments = lib.llama_model_load_from_splits, [keep_alive[-1], len(names), native[0]]
        model = cls.__new__(cls)
        made, heard = model._make(make, arguments, lib.llama_model_free)
        del keep_alive
        if not made:
            if stopped:
                raise Cancelled(f"loading {parts[0]} was stopped by the progress callback")
            sizes = shortage(library, parts, params)
            raise ModelError(f"libllama could not load {parts[0]}{sizes}{heard.why()}")

        model.path, model.params, model.library = parts[0], params, library
        model.placement = from_log(heard.lines())
        model._metadata = None
        model.n_positions = next((found.n_positions for found in reports if found.n_positions), None)
        mtp = any(found.has_mtp for found in reports) and library.profile.has("llama_model_n_layer_nextn")
        model.n_layer_mtp = int(model._ask("llama_model_n_layer_nextn")) if mtp else 0
        model.vocab = Vocab(model, library)
        return model

    _metadata: Mapping[str, str] | None

    def __repr__(self) -> str:
        return f"<Model {self.path.name}{' closed' if self.closed else ''}>"

    def _ask(self, name: str) -> Any:
        """What a function of llama.h says of this model."""
        with self.shared():
            return getattr(self.library.lib, name)(self.pointer)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata as text, after overrides (llama_model_meta_*). For typed values see GGUFReader."""
        if self._metadata is None:
            lib = self.library.lib
            with self.shared():
                self._metadata = read_metadata(
                    self.library,
                    self.pointer,
                    lib.llama_model_meta_count,
                    lib.llama_model_meta_key_by_index,
                    lib.llama_model_meta_val_str_by_index,
                )
        return self._metadata

    @property
    def architecture(self) -> str:
        """The architecture's name, e.g. "llama"."""
        return self.metadata.get("general.architecture", "")

    @property
    def description(self) -> str:
        """A line about the model: size and type (llama_model_desc)."""
        with self.shared():
            return _text(self.library.ffi, self.library.lib.llama_model_desc, self.pointer) or ""

    def chat_template(self, name: str | None = None) -> str | None:
        """The Jinja chat template in the file, or None (llama_model_chat_template)."""
        ffi = self.library.ffi
        named = ffi.NULL if name is None else encode(name)
        with self.shared():
            text = self.library.lib.llama_model_chat_template(self.pointer, named)
            return None if text == ffi.NULL else str(ffi.string(text).decode("utf-8", "replace"))

    @property
    def n_ctx_train(self) -> int:
        """Longest context that the model was trained on, in tokens."""
        return int(self._ask("llama_model_n_ctx_train"))

    @property
    def n_embd(self) -> int:
        """Width of the hidden state."""
        return int(self._ask("llama_model_n_embd"))

    @property
    def n_embd_inp(self) -> int:
        """Width of an embedding given in place of a token."""
        return int(self._ask("llama_model_n_embd_inp"))

    @property
    def n_embd_out(self) -> int:
        """Width of an output embedding."""
        if self.library.profile.has("llama_model_n_embd_out"):
            return int(self._ask("llama_model_n_embd_out"))
        return self.n_embd

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return int(self._ask("llama_model_n_layer"))

    @property
    def n_head(self) -> int:
        """Number of attention heads."""
        return int(self._ask("llama_model_n_head"))

    @property
    def n_head_kv(self) -> int:
        """Number of key/value heads."""
        return int(self._ask("llama_model_n_head_kv"))

    @property
    def n_swa(self) -> int:
        """Tokens of the sliding attention window, 0 where there is none."""
        return int(self._ask("llama_model_n_swa"))

    @property
    def n_cls_out(self) -> int:
        """Outputs of the classification head (rank pooling)."""
        return int(self._ask("llama_model_n_cls_out"))

    def cls_label(self, i: int) -> str | None:
        """The label of classifier output `i`, or None."""
        if integer("a classifier output", i, 0, INT32_MAX) >= self.n_cls_out:
            raise InvalidRequest(f"this model has {self.n_cls_out} classifier outputs: there is no number {i}")
        with self.shared():
            label = self.library.lib.llama_model_cls_label(self.pointer, i)
            return (
                None
                if label == self.library.ffi.NULL
                else str(self.library.ffi.string(label).decode("utf-8", "replace"))
            )

    @property
    def n_params(self) -> int:
        """Number of weights."""
        return int(self._ask("llama_model_n_params"))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(self._ask("llama_model_size"))

    @property
    def ftype(self) -> FType:
        """The file type (UnsupportedByBundle on bundles without llama_model_ftype)."""
        self.library.profile.require("llama_model_ftype")
        return FType(self._ask("llama_model_ftype"))

    @property
    def rope_type(self) -> RopeType:
        """How positions are encoded."""
        return RopeType(self._ask("llama_model_rope_type"))

    @property
    def moves_positions(self) -> bool:
        """Whether positions have several parts (M-RoPE), so that an image takes fewer than it has embeddings."""
        return self.rope_type in (RopeType.MROPE, RopeType.IMROPE)

    @property
    def has_encoder(self) -> bool:
        """Whether `Context.encode` applies."""
        return bool(self._ask("llama_model_has_encoder"))

    @property
    def has_decoder(self) -> bool:
        """Whether `Context.decode` applies."""
        return bool(self._ask("llama_model_has_decoder"))

    @property
    def decoder_start_token(self) -> int | None:
        """The token that starts the decoder of an encoder-decoder model."""
        token = int(self._ask("llama_model_decoder_start_token"))
        return token if token >= 0 else None

    @property
    def is_recurrent(self) -> bool:
        """Whether the model keeps a recurrent state, which cannot be rolled back (Mamba, RWKV)."""
        return bool(self._ask("llama_model_is_recurrent"))

    @property
    def is_hybrid(self) -> bool:
        """Whether it mixes attention and recurrent layers."""
        return bool(self._ask("llama_model_is_hybrid"))

    @property
    def is_diffusion(self) -> bool:
        """Whether it generates by diffusion rather than token by token."""
        return bool(self._ask("llama_model_is_diffusion"))


def _text(ffi: Any, call: Callable[..., int], *arguments: object) -> str | None:
    """The text that a getter of llama.h writes into a buffer."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        n = call(*arguments, buffer, size)
        if n < 0:
            return None
        if n < size:
            return bytes(ffi.buffer(buffer, n)).decode("utf-8", "replace")
        size = n + 1


def read_metadata(
    library: Library, pointer: Any, count: Callable[..., int], key_at: Callable[..., int], value_at: Callable[..., int]
) -> Mapping[str, str]:
    """The metadata of a model or an adapter, by its three functions of llama.h."""
    found: dict[str, str] = {}
    for i in range(count(pointer)):
        key = _text(library.ffi, key_at, pointer, i)
        value = _text(library.ffi, value_at, pointer, i)
        if key is not None and value is not None:
            found[key] = value
    return MappingProxyType(found)


def _file(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)) or "\0" in os.fspath(path):
        raise InvalidRequest(f"a model path must be a str or a Path without NUL, not {shown(path)}")
    found = Path(path)
    if os.path.isdir(found):  # os.path, unlike Path, also answers for a name that is too long
        raise ModelNotFound(f"{found} is a folder: name the .gguf file in it")
    if not os.path.isfile(found):
        raise ModelNotFound(f"there is no model file {found}")
    return found
