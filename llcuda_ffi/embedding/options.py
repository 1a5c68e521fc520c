"""The options of `Embedder.encode`, by our names and by those of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..keywords import check_keywords
from ..params import flag, integer, shown
from .precision import Precision, check_precision


class EncodeOptions(TypedDict, total=False):
    """What `encode` takes.

    Attributes:
        normalize, normalize_embeddings: to length 1; True unless said otherwise.
        truncate: cut texts that are too long instead of raising.
        prompt: a text put before each text.
        prompt_name: the name of one of the model's `prompts` instead.
        dim, truncate_dim: keep the first so many numbers (models trained for it: Matryoshka), normalized again.
        precision: "float32", "int8", "uint8", "binary" or "ubinary", as sentence-transformers computes them.
        batch_tokens: most tokens computed together in this call.
        batch_size: taken for sentence-transformers' sake, without effect: batches are filled by tokens.
        show_progress, show_progress_bar: a bar on stderr; None: for many texts on a terminal.
        dtype: of the result, where precision is "float32".
    """

    normalize: bool
    normalize_embeddings: bool
    truncate: bool
    prompt: str | None
    prompt_name: str | None
    dim: int | None
    truncate_dim: int | None
    precision: Precision
    batch_tokens: int | None
    batch_size: int | None
    show_progress: bool | None
    show_progress_bar: bool | None
    dtype: npt.DTypeLike


# sentence-transformers' names → ours
_SAME = {"normalize_embeddings": "normalize", "truncate_dim": "dim", "show_progress_bar": "show_progress"}


@dataclass(frozen=True)
class Options:
    """The options, checked."""

    normalize: bool = True
    truncate: bool = False
    prompt: str | None = None
    prompt_name: str | None = None
    dim: int | None = None
    precision: Precision = "float32"
    batch_tokens: int | None = None
    show_progress: bool | None = None
    dtype: Any = np.float32


def encode_options(given: Mapping[str, Any]) -> Options:
    """The options of one call.

    Raises:
        UnknownSetting: an unknown name.
        InvalidRequest: a value is of the wrong type, or the same option is given by both names.
    """
    check_keywords(given, "encode()", EncodeOptions.__annotations__)
    found: dict[str, Any] = {}
    for name, value in given.items():
        here = _SAME.get(name, name)
        if here in found:
            raise InvalidRequest(f"{name} and {here} are the same: give one of them")
        found[here] = value
    size = found.pop("batch_size", None)
    if size is not None:
        integer("batch_size", size, 1, 1 << 31)
    options = Options(**found)
    check_precision(options.precision)
    flag("normalize", options.normalize)
    try:
        kind = np.dtype(options.dtype)
    except (TypeError, ValueError):
        raise InvalidRequest(f"dtype must be a floating-point type, not {shown(options.dtype)}") from None
    if kind.kind != "f":
        raise InvalidRequest(f"dtype must be a floating-point type, not {kind}: precision= gives integers")
    return options
