"""ABI profiles: which llama.cpp builds share one set of declarations, and how to tell that a library is one of them.

The canary values were measured on the real libraries: what each `*_default_params` writes into a buffer filled with
0xAA (extent in bytes, holes that it leaves, first 16 hex digits of the SHA-256 of the bytes up to the extent).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import AbiMismatch, UnsupportedByBundle


@dataclass(frozen=True)
class Canary:
    """What one function writes through its hidden result pointer.

    Attributes:
        extent: bytes from the start to the last one written.
        holes: offsets below the extent that it leaves alone (padding).
        digest: of those bytes, or None where nobody could measure it yet: extent and fields are checked then.
    """

    extent: int
    holes: tuple[int, ...]
    digest: str | None


@dataclass(frozen=True)
class Profile:
    """One ABI.

    Attributes:
        name: as in pins.toml.
        module: the generated module of declarations.
        llama_version, ggml_version: what the library says of itself; None where it says nothing (llama_version) or
            builds differ (ggml_version).
        required, forbidden: exported symbols.
        canaries: function → what it writes.
        fields: struct → field → value that the defaults must hold.
        signatures: names of parameters that drifted, for `has`.
    """

    name: str
    module: str
    llama_version: str | None
    ggml_version: str | None
    required: tuple[str, ...]
    forbidden: tuple[str, ...]
    canaries: Mapping[str, Canary]
    fields: Mapping[str, Mapping[str, int]]
    signatures: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def ffi(self) -> Any:
        """The FFI with this profile's declarations."""
        return importlib.import_module(f".{self.module}", __package__).ffi

    @cached_property
    def _functions(self) -> frozenset[str]:
        return frozenset(dir(self.ffi.dlopen(None)))  # what is declared, whether the process has it or not

    def has(self, feature: str) -> bool:
        """Whether this ABI has a function ("llama_version"), a struct field ("model_params.load_mode",
        "context_params.n_rs_seq", "quantize_params.dry_run") or a parameter ("llama_sampler_init_dry.n_ctx_train").
        """
        if feature in self.signatures:
            return True
        if "." not in feature:
            return feature in self._functions
        struct, name = feature.split(".", 1)
        full = {"quantize_params": "model_quantize_params"}.get(struct, struct)
        try:
            fields = self.ffi.typeof(f"struct llama_{full}").fields
        except self.ffi.error:
            return False
        return any(item[0] == name for item in fields)

    def require(self, feature: str) -> None:
        """Raise UnsupportedByBundle, naming the profiles that have `feature`, unless this one does."""
        if not self.has(feature):
            others = [p.name for p in PROFILES.values() if p.has(feature)]
            known = f"bundles of profile {' and '.join(others)} have it" if others else "no known bundle has it"
            raise UnsupportedByBundle(f"{feature} is not in the loaded llama.cpp (profile {self.name}): {known}")


def profile(name: str) -> Profile:
    """The profile of that name."""
    try:
        return PROFILES[name]
    except KeyError:
        raise AbiMismatch(f"there is no ABI profile {name!r}: this package knows {', '.join(PROFILES)}") from None


_MODEL, _CONTEXT, _QUANTIZE = (
    "llama_model_default_params",
    "llama_context_default_params",
    "llama_model_quantize_default_params",
)

_OLD_FIELDS = {
    _CONTEXT: {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "type_k": 1},
}
_NEW_FIELDS = {
    _MODEL: {"n_gpu_layers": -1, "load_mode": -1, "lazy_mode": 1},
    _CONTEXT: {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "type_k": 1,
    },
}
_NEW_CANARIES = {
    _MODEL: Canary(78, (36, 37, 38, 39), "2224a8ba8da52bce"),
    _CONTEXT: Canary(160, (134, 135), "6023de106a454002"),
    _QUANTIZE: Canary(64, (22, 23), "aeef6821447276fa"),
}

PROFILES: dict[str, Profile] = {
    "b7698": Profile(
        name="b7698",
        module="_abi_b7698",
        llama_version=None,
        ggml_version="0.9.5",
        required=("llama_set_adapter_lora", "llama_apply_adapter_cvec", "llama_params_fit"),
        forbidden=("llama_set_adapters_lora", "llama_version", "llama_sampler_copy"),
        canaries={
            _MODEL: Canary(72, (28, 29, 30, 31), "f0150726618fbb1c"),
            _CONTEXT: Canary(136, (118, 119), "db14c7aaaa6189e2"),
            _QUANTIZE: Canary(56, (21, 22, 23), "c28e5b5aec6eb8a7"),
        },
        fields=_OLD_FIELDS,
        signatures=frozenset({"llama_sampler_init_dry.n_ctx_train"}),
    ),
    "v0.5.0": Profile(
        name="v0.5.0",
        module="_abi_v0_5_0",
        llama_version="0.5.0-dev",
        ggml_version="0.25.1",
        required=("llama_adapter_lora_init_from_file_ptr", "llama_set_adapters_lora", "llama_version"),
        forbidden=("llama_batch_ext_init", "llama_set_adapter_lora"),
        canaries=_NEW_CANARIES,
        fields=_NEW_FIELDS,
        signatures=frozenset({"llama_sampler_init_penalties.n_vocab"}),
    ),
    "b11227": Profile(
        name="b11227",
        module="_abi_b11227",
        llama_version="0.5.0-dev",
        ggml_version="0.25.3",
        required=("llama_batch_ext_init", "llama_get_causal_attn", "llama_set_adapters_lora", "llama_version"),
        forbidden=("llama_set_adapter_lora",),
        canaries=_NEW_CANARIES,
        fields=_NEW_FIELDS,
        signatures=frozenset({"llama_sampler_init_penalties.n_vocab"}),
    ),
}
