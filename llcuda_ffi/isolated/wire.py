"""Settings and results as plain values, and back."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .. import errors
from ..bundles import InstalledBundle
from ..engine.answer_params import AnswerParams
from ..engine.metrics import MetricsSnapshot, Percentiles
from ..engine.results import Chunk, Completion, Timings, TokenLogprob, Usage
from ..engine.sampling.reasoning_budget import ReasoningBudget
from ..errors import BackendFailure, InvalidRequest, LlcudaError
from ..params import ContextParams, ModelParams
from ..sampling_params import SamplingParams
from ..structured.types import type_schema

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Chunk, Completion, Timings, TokenLogprob, Usage, MetricsSnapshot, Percentiles,
        SamplingParams, AnswerParams, ReasoningBudget, ModelParams, ContextParams, InstalledBundle,
    )
}  # fmt: skip


@cache
def _fields(name: str) -> tuple[tuple[str, Any], ...]:
    return tuple((field.name, field.default) for field in dataclasses.fields(_KINDS[name]))


def plain(value: Any) -> Any:
    """A value that JSON can hold; of a dataclass only what is not the default.

    Raises:
        InvalidRequest: an object that cannot leave this process.
    """
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, bytes):
        return {"": "bytes", "data": value.decode("latin-1")}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    kind = type(value).__name__
    if kind in _KINDS:
        out = {"": kind}
        for name, default in _fields(kind):
            field = getattr(value, name)
            if field is not default:
                out[name] = plain(field)
        return out
    if isinstance(value, Mapping):
        return {"": "dict", "items": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise InvalidRequest(f"with isolate=True a setting must be plain data, not {type(value).__name__}: {value!r:.80}")


def back(value: Any) -> Any:
    """The value again; only the kinds above are made.

    Raises:
        ValueError, TypeError, LookupError: it is none that `plain` makes.
    """
    if isinstance(value, list):
        return [back(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value[""]
    if name == "bytes":
        return value["data"].encode("latin-1")
    if name == "dict":
        return {back(key): back(item) for key, item in value["items"]}
    fields = {key: back(item) for key, item in value.items() if key}
    if name == "TokenLogprob" and "top" in fields:
        fields["top"] = tuple((token, logprob) for token, logprob in fields["top"])
        fields["top_bytes"] = tuple(fields["top_bytes"])
    if name == "AnswerParams":
        fields |= {"shown": frozenset(fields["shown"]), "rules": tuple(fields.get("rules", ()))}
    if name == "InstalledBundle":
        fields["path"] = Path(fields["path"])
    return _KINDS[name](**fields)


def plain_params(params: SamplingParams, seed: int, n: int) -> Any:
    """The settings of n requests, the first of which has this seed.

    Raises:
        InvalidRequest: a setting that cannot leave this process: an adapter, a function.
    """
    if params.lora is not None:
        raise InvalidRequest("isolate=True: adapters live in the engine's process; merge it into the model instead")
    changes: dict[str, Any] = {"seed": seed, "n": n}
    if isinstance(params, AnswerParams):
        changes["output_of"] = None  # the value is read on this side
    schema = params.json_schema
    if schema is not None and schema is not True and not isinstance(schema, (Mapping, str, bytes)):
        changes["json_schema"] = type_schema(schema, getattr(schema, "__name__", "json_schema"))
    return plain(dataclasses.replace(params, **changes))


def plain_error(error: BaseException) -> list[str]:
    """An exception's class and message."""
    return [type(error).__name__, str(error)]


def error_back(found: Any) -> LlcudaError:
    """The exception of our tree again; of another kind BackendFailure."""
    name, message = found
    kind = getattr(errors, str(name), None)
    if isinstance(kind, type) and issubclass(kind, LlcudaError):
        try:
            return kind(str(message))
        except TypeError:  # one that is made of more than a message
            return InvalidRequest(str(message)) if issubclass(kind, InvalidRequest) else LlcudaError(str(message))
    return BackendFailure(f"the engine's process failed: {name}: {message}")
