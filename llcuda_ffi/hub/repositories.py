"""Which file of a hub's repository is meant by its name alone, by a quantization, or by a pattern.

`owner/repo` is the file most people want (Q4_K_M where there is one), `owner/repo:Q8_0` the file of that
quantization, `owner/repo:*q8_0.gguf` the file that matches. What is cached is looked through first, so that a name
that worked once works without the network.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence

from ..errors import ModelNotFound

SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
# what is taken where only the repository is named: first what most people run, then what is near it
_PREFERRED = (
    "Q4_K_M", "Q4_K_S", "UD-Q4_K_XL", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q5_0", "Q6_K", "Q8_0",
    "Q3_K_M", "Q3_K_L", "Q2_K", "MXFP4", "BF16", "F16", "FP16", "F32",
)  # fmt: skip
# files of a repository that are no language model
_OTHER = re.compile(r"(^|[-_./])(mmproj|imatrix|adapter|lora)([-_.]|$)", re.IGNORECASE)


def choose(repo: str, files: Sequence[str], wanted: str | None) -> str | None:
    """The file among `files` that is meant, of a split model its first part; None where none is.

    Args:
        wanted: a quantization ("Q4_K_M"), a pattern ("*q8_0.gguf"), or None for the repository alone.

    Raises:
        ModelNotFound: a pattern or a quantization matches several models.
    """
    models = [file for file in files if file.endswith(".gguf") and not _OTHER.search(file)]
    first = [file for file in models if (split := SPLIT.fullmatch(file)) is None or int(split[2]) == 1]
    if wanted is None:
        for kind in _PREFERRED:
            found = [file for file in first if has_quantization(file, kind)]
            if found:
                return min(found, key=len)
        return min(first, key=len, default=None)
    if is_pattern(wanted):
        found = [file for file in first if matches(file, wanted)]
    else:
        found = [file for file in first if has_quantization(file, wanted)]
    if len(found) > 1:
        raise ModelNotFound(f"{wanted!r} matches several files of {repo}: name one of {', '.join(sorted(found)[:12])}")
    return found[0] if found else None


def is_pattern(wanted: str) -> bool:
    """Whether it has the wildcards of a glob."""
    return any(letter in wanted for letter in "*?[")


def matches(file: str, pattern: str) -> bool:
    """Whether a glob matches a file's path, or its name in any folder; case counts as in llama-cpp-python."""
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(file.rpartition("/")[2], pattern)


def has_quantization(file: str, kind: str) -> bool:
    """Whether a file's name says that it is of a quantization, such as Q4_K_M, in any case."""
    return re.search(rf"(^|[-_./]){re.escape(kind)}([-./]|$)", file, re.IGNORECASE) is not None


def not_among(repo: str, files: Sequence[str], wanted: str | None) -> ModelNotFound:
    """The exception for a file that a repository lacks; it names what there is."""
    models = sorted(file for file in files if file.endswith(".gguf"))
    if not models:
        return ModelNotFound(f"{repo} has no GGUF files: look for a repository of the model whose name ends in -GGUF")
    near = difflib.get_close_matches((wanted or "").strip("*"), models, 3, 0.3) or models[:12]
    return ModelNotFound(f"{repo} has no file {wanted!r}: did you mean {', '.join(near)}?")
