"""LoRA adapters and control vectors: what changes a model's answers without changing the model."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import gguf
from ..errors import InvalidModelFile, InvalidRequest, ModelError, UnsupportedModel
from ..native.handle import Handle
from ..native.log import listen
from ..params import number
from .context import Context
from .model import Model, read_metadata
from .trial import tried

# which adapters are set on a context: kept here, so that none is freed while C computes with it
_active: weakref.WeakKeyDictionary[Context, dict[LoraAdapter, float]] = weakref.WeakKeyDictionary()
_vectors: weakref.WeakKeyDictionary[Context, str] = weakref.WeakKeyDictionary()  # SHA-256 of their control vectors


class LoraAdapter(Handle):
    """A LoRA adapter in memory (struct llama_adapter_lora), for one loaded model. Make one with `LoraAdapter.load`.

    Attributes:
        path: its file.
        model: the model that it belongs to.
    """

    path: Path
    model: Model

    def __init__(self) -> None:
        raise InvalidRequest("a LoraAdapter is made by LoraAdapter.load(model, path)")

    @classmethod
    def load(cls, model: Model, path: str | os.PathLike[str]) -> LoraAdapter:
        """Load a GGUF adapter (llama_adapter_lora_init); `llcuda_ffi.lora.convert` makes one from a PEFT folder.

        Raises:
            ModelNotFound: no such file.
            InvalidModelFile: it is broken, no LoRA adapter, or ended the process that tried it (ModelParams.trial).
            ModelError: it does not fit this model; the message carries libllama's log.
        """
        if not isinstance(model, Model):
            raise InvalidRequest(f"an adapter is loaded for a Model, not for {type(model).__name__}")
        if model.params.vocab_only:
            raise InvalidRequest("this model was loaded with vocab_only=True: no adapter can be used with it")
        gguf.check_adapter(path)
        _check_against(path, model)
        with tried([model.path], model.params, adapter=Path(path)):
            pass
        lib = model.library.lib
        adapter = cls.__new__(cls)
        with model.exclusive():  # libllama keeps a list of adapters in the model
            made, heard = adapter._make(
                lib.llama_adapter_lora_init,
                (model.pointer, os.fsencode(path)),
                lib.llama_adapter_lora_free,
                model,
                unlink=partial(_take_off, weakref.ref(adapter)),
            )
        if not made:
            raise ModelError(f"the adapter {path} does not fit {model.path.name}{heard.why()}")
        adapter.path, adapter.model = Path(path), model
        return adapter

    def __repr__(self) -> str:
        return f"<LoraAdapter {self.path.name} for {self.model.path.name}{' closed' if self.closed else ''}>"

    @property
    def metadata(self) -> Mapping[str, str]:
        """The adapter file's metadata as text (llama_adapter_meta_*)."""
        lib = self.model.library.lib
        with self.shared():
            return read_metadata(
                self.model.library,
                self.pointer,
                lib.llama_adapter_meta_count,
                lib.llama_adapter_meta_key_by_index,
                lib.llama_adapter_meta_val_str_by_index,
            )

    @property
    def alpha(self) -> float:
        """adapter.lora.alpha."""
        return float(self.metadata.get("adapter.lora.alpha", "0"))

    @property
    def invocation_tokens(self) -> list[int]:
        """For an activated LoRA (aLoRA) the tokens after which it is meant to be used; empty otherwise."""
        lib = self.model.library.lib
        with self.shared():
            n = lib.llama_adapter_get_alora_n_invocation_tokens(self.pointer)
            tokens = lib.llama_adapter_get_alora_invocation_tokens(self.pointer) if n else ()
            return [int(tokens[i]) for i in range(n)]


def _take_off(reference: weakref.ref[LoraAdapter]) -> None:
    """Take an adapter that is being closed off every context.

    Raises:
        ConcurrentUseError: a context that uses it is computing.
    """
    adapter = reference()
    for context, adapters in list(_active.items()):
        if adapter in adapters and context.usable:
            set_adapters(context, {a: s for a, s in adapters.items() if a is not adapter})


def _check_against(path: str | os.PathLike[str], model: Model) -> None:
    """Refuse what libllama would load and then abort on, at the first decode."""
    try:
        base = gguf.GGUFReader(model.path)
    except ModelError:
        return  # the model's file is gone since it was loaded: libllama's own checks remain
    with base, gguf.GGUFReader(path) as adapter:
        if any(info.ggml_type == gguf.GGMLType.NVFP4 for info in base.tensors.values()):
            raise UnsupportedModel(f"{model.path.name} has NVFP4 matrices, which cannot be combined with LoRA")
        for name, info in adapter.tensors.items():
            if name.startswith("token_embd.") and name.endswith(".lora_a"):
                partner = adapter.tensors[name.removesuffix("a") + "b"]
                if info.ne[0] != partner.ne[0]:
                    raise InvalidModelFile(f"{path}: the two parts of token_embd have different ranks")
                if base.split[1] == 1 and "output.weight" not in base.tensors:
                    raise UnsupportedModel(
                        f"{path} changes the token embeddings, which {model.path.name} also uses as its output "
                        "matrix: merge the adapter (llcuda_ffi.lora.merge) instead"
                    )
            target = base.tensors.get(name.rpartition(".lora_")[0])
            if target is not None and (*info.ne, 1, 1)[2] not in (1, (*target.ne, 1, 1)[2]):
                raise InvalidModelFile(f"{path}: {name} has another number of experts than the model")
            if target is not None and (*target.ne, 1, 1)[2] > 1 and len(info.ne) < 3:
                raise InvalidModelFile(f"{path}: {name} has no experts, the model's matrix has")


def check_adapters(model: Model, adapters: Mapping[LoraAdapter, float]) -> dict[LoraAdapter, float]:
    """Adapters of a model with their scales.

    Raises:
        InvalidRequest: no adapter, one of another model, or a scale that is no finite number.
    """
    chosen = {}
    for adapter, scale in adapters.items():
        if not isinstance(adapter, LoraAdapter):
            raise InvalidRequest(f"adapters must be LoraAdapter objects, not {type(adapter).__name__}")
        if adapter.model is not model:
            raise InvalidRequest(
                f"{adapter.path.name} was loaded for another Model object: load it with this context's model"
            )
        chosen[adapter] = number("an adapter's scale", scale)
    return chosen


def set_adapters(context: Context, adapters: Mapping[LoraAdapter, float]) -> None:
    """Compute with these adapters and scales from the next batch on, and with no others (llama_set_adapters_lora).

    What the KV cache holds was computed with the adapters of its time: clear it where that matters.

    Raises:
        InvalidRequest: an adapter of another model, or a scale that is no finite number.
        ClosedError: an adapter was closed.
        ModelError: libllama refused.
    """
    chosen = check_adapters(context.model, adapters)
    library = context.model.library
    ffi, lib, profile = library.ffi, library.lib, library.profile
    with ExitStack() as held:
        held.enter_context(context.exclusive())
        for adapter in chosen:
            held.enter_context(adapter.shared())  # until `_active` names it
        heard = held.enter_context(listen())
        pointer = context.pointer
        pointers = [adapter.pointer for adapter in chosen]
        if profile.has("llama_set_adapters_lora"):
            array = ffi.new("struct llama_adapter_lora *[]", pointers)
            scales = ffi.new("float[]", list(chosen.values()))
            code = lib.llama_set_adapters_lora(
                pointer, array if chosen else ffi.NULL, len(chosen), scales if chosen else ffi.NULL
            )
        else:
            lib.llama_clear_adapter_lora(pointer)
            _active.pop(context, None)
            code = 0
            for one, scale in zip(pointers, chosen.values(), strict=True):
                code = code or lib.llama_set_adapter_lora(pointer, one, scale)
        _active[context] = chosen
        if code:
            raise ModelError(f"libllama refused the adapters (code {code}){heard.why()}")


def active_adapters(context: Context) -> dict[LoraAdapter, float]:
    """The adapters set on a context, with their scales."""
    return dict(_active.get(context, {}))


def control_vector(context: Context) -> str:
    """The SHA-256 of the control vector set on a context, with its layers; empty where there is none."""
    return _vectors.get(context, "")


def set_control_vector(
    context: Context,
    vector: npt.ArrayLike | None,
    first_layer: int = 1,
    last_layer: int | None = None,
) -> None:
    """Add a vector to the hidden state after each layer (llama_set_adapter_cvec); None takes it off.

    What the KV cache holds was computed with the vector of its time; a Llama forgets it, other users clear it.

    Args:
        vector: float32 of shape (n_layer - 1, n_embd): one row for each layer from 1 on (layer 0 has none).
        first_layer, last_layer: the layers, both included, in which it is added; by default all.

    Raises:
        InvalidRequest: another shape, values that are not finite, or layers that are not there.
        ModelError: libllama refused.
    """
    model = context.model
    ffi, lib = model.library.ffi, model.library.lib
    n_layer, n_embd = model.n_layer, model.n_embd
    call: Any = (
        lib.llama_set_adapter_cvec
        if model.library.profile.has("llama_set_adapter_cvec")
        else lib.llama_apply_adapter_cvec
    )
    with context.exclusive(), listen() as heard:
        pointer = context.pointer
        if vector is None:
            call(pointer, ffi.NULL, 0, n_embd, 0, 0)
            _vectors.pop(context, None)
            return
        values = np.ascontiguousarray(vector, np.float32)
        if values.shape != (n_layer - 1, n_embd):
            raise InvalidRequest(
                f"a control vector of {model.path.name} has the shape ({n_layer - 1}, {n_embd}), not {values.shape}"
            )
        if not np.isfinite(values).all():
            raise InvalidRequest("the control vector holds values that are not finite")
        last = n_layer - 1 if last_layer is None else last_layer
        if not 1 <= first_layer <= last <= n_layer - 1:
            raise InvalidRequest(
                f"layers must satisfy 1 <= first <= last <= {n_layer - 1}, not {first_layer} to {last}"
            )
        if call(pointer, ffi.from_buffer("float[]", values), values.size, n_embd, first_layer, last):
            raise ModelError(f"libllama refused the control vector{heard.why()}")
        _vectors[context] = hashlib.sha256(values.tobytes() + bytes(f"{first_layer}-{last}", "ascii")).hexdigest()
