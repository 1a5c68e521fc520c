"""ABI profiles: which llama.cpp builds share one set of declarations, and how to tell that a library is one.

They are kept in headers/profiles.toml. The canary values were measured on the real libraries: what each function writes
into a buffer filled with 0xAA.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import AbiMismatch, UnsupportedByBundle
from ._abi_profiles import PROFILE_DATA


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


def _profile(data: Mapping[str, Any]) -> Profile:
    canaries: Mapping[str, Mapping[str, Any]] = data["canary"]
    return Profile(
        name=data["name"],
        module=data["module"],
        llama_version=data.get("llama_version"),
        ggml_version=data.get("ggml_version"),
        required=tuple(data["required"]),
        forbidden=tuple(data["forbidden"]),
        canaries={name: Canary(c["extent"], tuple(c["holes"]), c["digest"]) for name, c in canaries.items()},
        defaults={name: c.get("defaults", {}) for name, c in canaries.items()},
        signatures=frozenset(data["signatures"]),
    )


PROFILES: dict[str, Profile] = {data["name"]: _profile(data) for data in PROFILE_DATA}
