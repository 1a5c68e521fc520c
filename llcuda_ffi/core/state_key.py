"""What a state depends on: the model, the library, and every setting and adapter that changes what the memory holds."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..params import ROPE_NUMBERS
from .adapter import LoraAdapter, active_adapters, control_vector
from .context import Context
from .model import Model


def state_key(context: Context) -> dict[str, Any]:
    """What must agree between two contexts for one to continue the other's states. JSON can hold it.

    Sizes and threads are not in it: n_ctx, n_batch and n_seq_max change no state of a sequence.
    """
    model, params = context.model, context.params
    base = params.rope_freq_base or float(model.metadata.get(f"{model.architecture}.rope.freq_base", 0))
    return {
        "model": _fingerprint(model),
        "kv_overrides": {key: model.params.kv_overrides[key] for key in sorted(model.params.kv_overrides)},
        "abi": model.library.profile.name,
        # the library whose serialisation it is: the format may change between builds of one ABI
        "library": model.library.bundle.libllama_sha256,
        "type_k": params.type_k.name,
        "type_v": params.type_v.name,
        "flash_attn": context.flash_attn,  # decides whether V is kept transposed
        "swa_full": params.swa_full,
        "rope_scaling_type": params.rope_scaling_type.name,
        **{key: getattr(params, key) for key in (*ROPE_NUMBERS, "yarn_orig_ctx")},
        "rope_freq_base": base,
        "long_rope": _long_rope(context),
        "adapters": [[_adapter(adapter), scale] for adapter, scale in active_adapters(context).items()],
        "control_vector": control_vector(context),
    }


def _long_rope(context: Context) -> bool:
    """Whether positions are encoded with a model's long factors (longrope), which n_ctx decides."""
    metadata, name = context.model.metadata, context.model.architecture
    trained = int(metadata.get(f"{name}.rope.scaling.original_context_length", 0))
    return 0 < trained < context.n_ctx_seq and metadata.get(f"{name}.rope.scaling.type") != "yarn"


_SAMPLES, _SAMPLE = 32, 4096
_fingerprints: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
_digests: weakref.WeakKeyDictionary[LoraAdapter, str] = weakref.WeakKeyDictionary()


def _fingerprint(model: Model) -> str:
    """What a model is: its sizes, its metadata, and 32 pieces of its file (all of it would take seconds)."""
    found = _fingerprints.get(model)
    if found is None:
        described = hashlib.sha256()
        for key, value in sorted(model.metadata.items()):
            described.update(f"{key}\0{value}\0".encode("utf-8", "surrogateescape"))
        try:
            with open(model.path, "rb") as file:
                end = os.fstat(file.fileno()).st_size
                for i in range(_SAMPLES):
                    described.update(os.pread(file.fileno(), _SAMPLE, max(0, end - _SAMPLE) * i // (_SAMPLES - 1)))
        except OSError as error:
            raise InvalidRequest(
                f"{model.path} can no longer be read ({error.strerror}): a state cannot be bound to its model"
            ) from error
        name = f"{model.architecture} {model.n_params} weights {model.size} bytes"
        found = _fingerprints[model] = f"{name} {described.hexdigest()[:16]}"
    return found


def _adapter(adapter: LoraAdapter) -> str:
    """An adapter's file name and SHA-256."""
    found = _digests.get(adapter)
    if found is None:
        try:
            found = hashlib.sha256(Path(adapter.path).read_bytes()).hexdigest()
        except OSError as error:
            raise InvalidRequest(
                f"{adapter.path} can no longer be read ({error.strerror}): a state cannot be bound to its adapter"
            ) from error
        _digests[adapter] = found
    return f"{adapter.path.name} {found[:32]}"
