"""The frozen settings of a model, a context and a request. Each checks itself when it is made."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .enums import AttentionType, FlashAttnType, GGMLType, LoadMode, PoolingType, RopeScalingType, SplitMode
from .errors import InvalidRequest
from .keywords import check_keywords, names_unknown

if TYPE_CHECKING:
    from typing_extensions import Self

_Params = TypeVar("_Params")

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1


def override(params: _Params, changes: Mapping[str, Any]) -> _Params:
    """`params` with `changes`; an unknown name raises UnknownSetting that tells the nearest known one."""
    if not changes:
        return params
    check_keywords(changes, type(params).__name__, [f.name for f in dataclasses.fields(params)])  # type: ignore[arg-type]
    return dataclasses.replace(params, **changes)  # type: ignore[type-var]


def shown(value: object) -> str:
    """The beginning of a value's repr, for a message; Python refuses to write an int of over 4,300 digits."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return f"one of {value.bit_length()} bits" if isinstance(value, int) else "one that cannot be written"


def integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as int within [low, high], or InvalidRequest."""
    # the first look is for speed: an abstract class is asked for long
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise InvalidRequest(f"{name} must be an integer, not {type(value).__name__} ({shown(value)})")
    whole = int(value)
    if not low <= whole <= high:
        raise InvalidRequest(f"{name} must be from {low} to {high}, not {shown(whole)}")
    return whole


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float within [low, high], or InvalidRequest."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise InvalidRequest(f"{name} must be a number, not {type(value).__name__} ({shown(value)})")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real) or not low <= real <= high:
        raise InvalidRequest(f"{name} must be a finite number from {low} to {high}, not {shown(value)}")
    return real


_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}{i}b": (1024 if i else 1000) ** n for n, letter in enumerate("kmgt", 1) for i in ("", "i")},
}


def byte_size(name: str, value: object) -> int:
    """`value` as a number of bytes: an integer, or a text such as "16GiB" or "500 MB"; or InvalidRequest."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return integer(name, value, 0, 1 << 62)
    text = value.strip().lower() if isinstance(value, str) else ""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", text)
    if found is None or found[2] not in _UNITS:
        raise InvalidRequest(f"{name} must be a number of bytes, such as 1000000 or '16GiB', not {shown(value)}")
    return integer(name, int(float(found[1]) * _UNITS[found[2]]), 0, 1 << 62)


def flag(name: str, value: object) -> bool:
    """`value` if it is a bool, or InvalidRequest."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be True or False, not {shown(value)}")
    return value


def items(name: str, value: object) -> tuple[Any, ...]:
    """What a list, an array or another iterable holds; InvalidRequest for anything else, a text too."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping)):
        try:
            return tuple(value)
        except TypeError:  # numpy's scalar arrays say that they are iterable
            pass
    raise InvalidRequest(f"{name} must be a list, not {type(value).__name__} ({shown(value)})")


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """`value` if it is a mapping, {} for None, or InvalidRequest."""
    if value is not None and not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be a mapping, not {type(value).__name__} ({shown(value)})")
    return value or {}


def checked(name: str, value: object, kind: type[_Params]) -> _Params:
    """`value` if it is of that kind of settings, the defaults for None, or InvalidRequest."""
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} must be {kind.__name__}, not {type(value).__name__} ({shown(value)})")
    return kind() if value is None else value


_Enum = TypeVar("_Enum")


def member(name: str, value: object, kind: type[_Enum]) -> _Enum:
    """`value` as a member of an enum (a member, its value, or its name in any case), or InvalidRequest."""
    try:
        if isinstance(value, str):
            return kind[value.upper()]  # type: ignore[index, no-any-return]
        if isinstance(value, int) and not isinstance(value, bool):
            return kind(value)  # type: ignore[call-arg]
    except (KeyError, ValueError):
        pass
    names = ", ".join(m.name for m in kind)  # type: ignore[attr-defined]
    raise InvalidRequest(f"{name} must be one of {names}, not {shown(value)}")


class _Checked:
    """Lets a frozen dataclass normalise its fields while it is made."""

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed; unknown names raise InvalidRequest."""
        return override(self, changes)


@names_unknown
@dataclass(frozen=True, kw_only=True)
class ModelParams(_Checked):
    """How a model is loaded (struct llama_model_params).

    Attributes:
        n_gpu_layers: layers to put on the GPU; None or -1 means all of them.
        split_mode: how several GPUs share the model.
        main_gpu: the GPU used when split_mode is NONE.
        tensor_split: share of the model for each GPU, any positive scale.
        devices: names of the devices to use ("CUDA0", …), as `llcuda-ffi doctor` lists them; None means all.
        load_mode: how the file is read; AUTO maps it into memory.
        vocab_only: load only the vocabulary (no Context can be made from it).
        check_tensors: look for invalid values in the tensors (slow).
        use_extra_bufts: let the CPU backend repack weights; None leaves it to libllama, which does, and in a Llama or
            Embedder to what is faster here (docs/build.md).
        no_host: keep weights out of pinned host buffers.
        load_mtp: also load the layers of multi-token prediction (MTP), which draft.
        kv_overrides: metadata of the file replaced while loading (int, float, bool or str values).
        tensor_buft_overrides: regular expression of tensor names → buffer type name ("CPU", "CUDA0").
        trial: have a file that was not seen before opened by a child process first, which it ends if it ends one.
    """

    n_gpu_layers: int | None = None
    split_mode: SplitMode = SplitMode.LAYER
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    devices: Sequence[str] | None = None
    load_mode: LoadMode = LoadMode.AUTO
    vocab_only: bool = False
    check_tensors: bool = False
    use_extra_bufts: bool | None = None
    no_host: bool = False
    load_mtp: bool = False
    kv_overrides: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    tensor_buft_overrides: Mapping[str, str] = field(default_factory=dict)
    trial: bool = True

    def __post_init__(self) -> None:
        if self.n_gpu_layers is not None:
            integer("n_gpu_layers", self.n_gpu_layers, -1, INT32_MAX)
        self._set("split_mode", member("split_mode", self.split_mode, SplitMode))
        self._set("load_mode", member("load_mode", self.load_mode, LoadMode))
        integer("main_gpu", self.main_gpu, 0, 1023)
        for name in ("vocab_only", "check_tensors", "no_host", "load_mtp", "trial"):
            flag(name, getattr(self, name))
        if self.use_extra_bufts is not None:
            flag("use_extra_bufts", self.use_extra_bufts)
        if self.tensor_split is not None:
            shares = tuple(number("tensor_split", share, 0.0) for share in items("tensor_split", self.tensor_split))
            if not shares or sum(shares) <= 0:
                raise InvalidRequest("tensor_split needs at least one share above 0")
            self._set("tensor_split", shares)
        if self.devices is not None:
            devices = items("devices", self.devices)
            if not all(isinstance(d, str) for d in devices):
                raise InvalidRequest("devices must be a list of device names")
            self._set("devices", devices)
        for key, value in mapping("kv_overrides", self.kv_overrides).items():
            _text("a kv_overrides key", key, 127)
            if isinstance(value, str):
                _text(f"kv_overrides[{key!r}]", value, 127)
            elif isinstance(value, float):
                number(f"kv_overrides[{key!r}]", value)
            elif not isinstance(value, bool):
                integer(f"kv_overrides[{key!r}]", value, -(2**63), 2**63 - 1)
        for pattern, target in mapping("tensor_buft_overrides", self.tensor_buft_overrides).items():
            _text("a tensor_buft_overrides pattern", pattern, 4096)
            _text(f"tensor_buft_overrides[{pattern!r}]", target, 127)
            check_regex(pattern)


def _text(name: str, value: object, limit: int) -> None:
    if not isinstance(value, str) or not value or "\0" in value or len(value.encode("utf-8", "replace")) > limit:
        raise InvalidRequest(f"{name} must be a text of 1 to {limit} bytes without NUL, not {shown(value)}")


def check_regex(pattern: str) -> None:
    """Refuse what std::regex would refuse: libllama lets its exception end the process."""
    # ECMAScript, which std::regex speaks, has no lookbehind, no inline flags, no named groups, no possessive repeats
    if re.search(r"\(\?(?![:=!])|\[\[|[*+?}]\+|\\[AZzGpPNuUQE]", pattern):
        raise InvalidRequest(f"{pattern!r} uses a construct that ECMAScript regular expressions do not have")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidRequest(f"{pattern!r} is not a regular expression: {error}") from None


# of ContextParams; None: as the model says
ROPE_NUMBERS = (
    "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
)  # fmt: skip


@names_unknown
@dataclass(frozen=True, kw_only=True)
class ContextParams(_Checked):
    """How a context is made (struct llama_context_params).

    Attributes:
        n_ctx: cells of the KV cache, in tokens, over all sequences; 0 means the model's training context.
        n_batch: most tokens in one `decode`.
        n_ubatch: most tokens computed at once.
        n_seq_max: sequences that may live in the context.
        n_outputs_max: most outputs in a micro-batch (0: n_batch); a small number saves memory.
        n_threads, n_threads_batch: CPU threads for one token and for prompts; None means the usable cores.
        pooling_type: how token embeddings become one vector (UNSPECIFIED: as the model says).
        attention_type: causal or not (UNSPECIFIED: as the model says).
        flash_attn_type: AUTO uses it where the backend can.
        type_k, type_v: types of the K and V caches.
        embeddings: output embeddings (and logits).
        offload_kqv, op_offload: keep the KV cache, and host tensor operations, on the GPU.
        no_perf: do not measure timings in C.
        swa_full: keep the full cache of sliding-window models (needed to roll them back).
        kv_unified: one KV buffer shared by all sequences instead of one share each.
        rope_*, yarn_*: overrides of the model's position encoding; None means as the model says.
        n_rs_seq: snapshots per sequence for the roll-back of recurrent models.
        mtp: compute the model's layers of multi-token prediction instead of the others; such a context decodes a
            `HiddenBatch` only.
    """

    n_ctx: int = 512
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_outputs_max: int = 0
    n_threads: int | None = None
    n_threads_batch: int | None = None
    pooling_type: PoolingType = PoolingType.UNSPECIFIED
    attention_type: AttentionType = AttentionType.UNSPECIFIED
    flash_attn_type: FlashAttnType = FlashAttnType.AUTO
    type_k: GGMLType = GGMLType.F16
    type_v: GGMLType = GGMLType.F16
    embeddings: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    no_perf: bool = True
    swa_full: bool = True
    kv_unified: bool = False
    rope_scaling_type: RopeScalingType = RopeScalingType.UNSPECIFIED
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    n_rs_seq: int = 0
    mtp: bool = False

    def __post_init__(self) -> None:
        integer("n_ctx", self.n_ctx, 0, INT32_MAX)
        integer("n_batch", self.n_batch, 1, INT32_MAX)
        integer("n_ubatch", self.n_ubatch, 1, INT32_MAX)
        integer("n_seq_max", self.n_seq_max, 1, INT32_MAX)
        integer("n_outputs_max", self.n_outputs_max, 0, INT32_MAX)
        integer("n_rs_seq", self.n_rs_seq, 0, 1024)
        for name in ("n_threads", "n_threads_batch"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1, 512)
        for name, kind in (
            ("pooling_type", PoolingType),
            ("attention_type", AttentionType),
            ("flash_attn_type", FlashAttnType),
            ("type_k", GGMLType),
            ("type_v", GGMLType),
            ("rope_scaling_type", RopeScalingType),
        ):
            self._set(name, member(name, getattr(self, name), kind))
        for name in ("type_k", "type_v"):
            if getattr(self, name).name not in KV_TYPES:
                raise InvalidRequest(f"{name} must be one of {', '.join(KV_TYPES)}, not {getattr(self, name).name}")
        for name in ("embeddings", "offload_kqv", "op_offload", "no_perf", "swa_full", "kv_unified", "mtp"):
            flag(name, getattr(self, name))
        for name in ROPE_NUMBERS:
            if getattr(self, name) is not None:
                number(name, getattr(self, name))
        if self.yarn_orig_ctx is not None:
            integer("yarn_orig_ctx", self.yarn_orig_ctx, 0, INT32_MAX)
        if self.n_seq_max > self.n_batch:
            raise InvalidRequest(f"n_seq_max ({self.n_seq_max}) must not exceed n_batch ({self.n_batch})")
        if self.n_outputs_max and self.n_outputs_max < self.n_seq_max:
            raise InvalidRequest(
                f"n_outputs_max ({self.n_outputs_max}) must be at least n_seq_max ({self.n_seq_max}), or 0"
            )


# what the KV cache may hold: llama.cpp's own list for its tools
KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")
