"""ABI profiles: which llama.cpp builds share one set of declarations, and how to tell that a library is one.

The canary values were measured on the real libraries: what each `*_default_params` writes into a buffer
filled with 0xAA.
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
        digest: first 16 hex digits of the SHA-256 of the bytes up to the extent.
    """

    extent: int
    holes: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Profile:
    """One ABI.

    Attributes:
        name: as in pins.toml.
        module: the generated module of declarations.
        llama_version, ggml_version: what the library says of itself; None where it says nothing.
        required, forbidden: exported symbols.
        canaries: function → what it writes.
        defaults: function → field → value that it must hold; every field not named holds 0.
        signatures: parameters and behaviour that drifted, for `has`.
    """

    name: str
    module: str
    llama_version: str | None
    ggml_version: str | None
    required: tuple[str, ...]
    forbidden: tuple[str, ...]
    canaries: Mapping[str, Canary]
    defaults: Mapping[str, Mapping[str, int]]
    signatures: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def ffi(self) -> Any:
        """The FFI with this profile's declarations."""
        return importlib.import_module(f".{self.module}", __package__).ffi

    @cached_property
    def _functions(self) -> frozenset[str]:
        return frozenset(dir(self.ffi.dlopen(None)))  # what is declared, whether the process has it or not

    def has(self, feature: str) -> bool:
        """Whether this ABI has a function ("llama_version"), a field of a struct ("model_params.load_mode",
        "quantize_params.dry_run") or a parameter that drifted ("llama_sampler_init_dry.n_ctx_train").
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
            known = f"profile {' and '.join(others)} has it" if others else "no known bundle has it"
            raise UnsupportedByBundle(f"{feature} is not in the loaded llama.cpp (profile {self.name}): {known}")


def profile(name: str) -> Profile:
    """The profile of that name."""
    try:
        return PROFILES[name]
    except KeyError:
        raise AbiMismatch(f"there is no ABI profile {name!r}: known are {', '.join(PROFILES)}") from None


_MODEL, _CONTEXT, _QUANTIZE = (
    "llama_model_default_params",
    "llama_context_default_params",
    "llama_model_quantize_default_params",
)

_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    **dict.fromkeys(("n_threads", "n_threads_batch"), 4),
    **dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1),
    **dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"), -1),
    **dict.fromkeys(("type_k", "type_v", "offload_kqv", "no_perf", "op_offload", "swa_full"), 1),
    "defrag_thold": -1,
}
_OLD_DEFAULTS = {
    _MODEL: {"n_gpu_layers": -1, "split_mode": 1, "use_mmap": 1, "use_direct_io": 1, "use_extra_bufts": 1},
    _CONTEXT: _CONTEXT_DEFAULTS,
    _QUANTIZE: {
        "ftype": 9,
        **dict.fromkeys(("output_tensor_type", "token_embedding_type"), 40),
        "quantize_output_tensor": 1,
    },
}
_NEW_DEFAULTS = {
    _MODEL: {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": 1},
    _CONTEXT: {**_CONTEXT_DEFAULTS, "n_outputs_max_per_seq": 1},
    _QUANTIZE: {
        "ftype": 7,
        **dict.fromkeys(("output_tensor_type", "token_embedding_type"), 43),
        "quantize_output_tensor": 1,
        "max_buf_size": 8 << 30,
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
        defaults=_OLD_DEFAULTS,
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
        defaults=_NEW_DEFAULTS,
        signatures=frozenset({"llama_sampler_init_penalties.n_vocab", "grammar.repeats_nothing"}),
    ),
    "b11227": Profile(
        name="b11227",
        module="_abi_b11227",
        llama_version="0.5.0-dev",
        ggml_version="0.25.3",
        required=(
            "llama_batch_ext_init",
            "llama_get_causal_attn",
            "llama_set_adapters_lora",
            "llama_version",
        ),
        forbidden=("llama_set_adapter_lora",),
        canaries=_NEW_CANARIES,
        defaults=_NEW_DEFAULTS,
        signatures=frozenset({"llama_sampler_init_penalties.n_vocab", "grammar.repeats_nothing"}),
    ),
}
