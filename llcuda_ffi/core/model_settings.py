"""A model's settings as the C struct that they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..enums import LoadMode
from ..errors import InvalidRequest, UnsupportedByBundle
from ..native.load import Library
from ..params import ModelParams


def native_params(library: Library, params: ModelParams) -> tuple[Any, list[Any]]:
    """The C struct for `params`, and what must stay alive until the load is over."""
    ffi, lib, profile = library.ffi, library.lib, library.profile
    native = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    keep: list[Any] = []

    if params.n_gpu_layers is not None:
        # older bundles read only a count: all layers is any number above theirs
        everything = -1 if profile.has("model_params.load_mode") else 999
        native.n_gpu_layers = everything if params.n_gpu_layers < 0 else params.n_gpu_layers
    _split_mode(library, native, params)
    native.main_gpu = params.main_gpu
    _load_mode(library, native, params.load_mode)
    native.vocab_only = params.vocab_only
    native.check_tensors = params.check_tensors
    if params.use_extra_bufts is not None:
        native.use_extra_bufts = params.use_extra_bufts
    native.no_host = params.no_host
    if profile.has("model_params.load_mtp"):
        native.load_mtp = params.load_mtp
    elif params.load_mtp:
        raise UnsupportedByBundle(f"{library.bundle.name} has no multi-token prediction: use v0.5.0 or a newer bundle")

    if params.tensor_split is not None:
        n = lib.llama_max_devices()
        if len(params.tensor_split) > n:
            raise InvalidRequest(
                f"tensor_split has {len(params.tensor_split)} shares: this bundle knows at most {n} devices"
            )
        keep.append(ffi.new("float[]", [*params.tensor_split, *[0.0] * (n - len(params.tensor_split))]))
        native.tensor_split = keep[-1]
    if params.devices is not None:
        devices = []
        for name in params.devices:
            device = lib.ggml_backend_dev_by_name(name.encode())
            if device == ffi.NULL:
                known = ", ".join(_device_names(library)) or "none"
                raise InvalidRequest(f"there is no device {name!r}: the loaded bundle has {known}")
            devices.append(device)
        keep.append(ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL]))
        native.devices = keep[-1]
    if params.kv_overrides:
        native.kv_overrides = native_kv_overrides(ffi, params.kv_overrides, keep)
    if params.tensor_buft_overrides:
        native.tensor_buft_overrides = _buft_overrides(library, params.tensor_buft_overrides, keep)
    return native, keep


def _split_mode(library: Library, native: Any, params: ModelParams) -> None:
    if params.split_mode.name == "TENSOR" and not library.profile.has("model_params.load_mode"):
        raise UnsupportedByBundle(f"split_mode TENSOR needs a newer bundle than {library.bundle.name}: use v0.5.0")
    if params.split_mode.name == "ROW":
        cuda = library.lib.ggml_backend_reg_by_name(b"CUDA")
        if cuda and not library.lib.ggml_backend_reg_get_proc_address(cuda, b"ggml_backend_split_buffer_type"):
            raise UnsupportedByBundle(
                f"split_mode ROW: the CUDA library of bundle {library.bundle.name} has no split buffers (newer "
                "llama.cpp gave them up): use LAYER, or TENSOR"
            )
    native.split_mode = params.split_mode.value


def _load_mode(library: Library, native: Any, mode: LoadMode) -> None:
    if library.profile.has("model_params.load_mode"):
        native.load_mode = mode.value
    elif mode != LoadMode.AUTO:  # the older layout has three switches instead
        native.use_mmap = mode in (LoadMode.MMAP, LoadMode.MMAP_MLOCK)
        native.use_mlock = mode in (LoadMode.MLOCK, LoadMode.MMAP_MLOCK)
        native.use_direct_io = mode == LoadMode.DIRECT_IO


def _device_names(library: Library) -> list[str]:
    ffi, lib = library.ffi, library.lib
    return [
        ffi.string(lib.ggml_backend_dev_name(lib.ggml_backend_dev_get(i))).decode()
        for i in range(lib.ggml_backend_dev_count())
    ]


def native_kv_overrides(ffi: Any, overrides: Mapping[str, int | float | bool | str], keep: list[Any]) -> Any:
    array = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)  # the last one, all zero, ends it
    for item, (key, value) in zip(array, overrides.items(), strict=False):
        item.key = key.encode()
        if isinstance(value, bool):
            item.tag, item.val_bool = 2, value
        elif isinstance(value, int):
            item.tag, item.val_i64 = 0, value
        elif isinstance(value, float):
            item.tag, item.val_f64 = 1, value
        else:
            item.tag, item.val_str = 3, value.encode()
    keep.append(array)
    return array


def _buft_overrides(library: Library, overrides: Mapping[str, str], keep: list[Any]) -> Any:
    ffi, lib = library.ffi, library.lib
    types = {}
    for i in range(lib.ggml_backend_dev_count()):
        buft = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(i))
        types[ffi.string(lib.ggml_backend_buft_name(buft)).decode()] = buft
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(overrides) + 1)
    for item, (pattern, name) in zip(array, overrides.items(), strict=False):
        if name not in types:
            raise InvalidRequest(f"there is no buffer type {name!r}: this bundle has {', '.join(types)}")
        keep.append(ffi.new("char[]", pattern.encode()))
        item.pattern, item.buft = keep[-1], types[name]
    keep.append(array)
    return array
