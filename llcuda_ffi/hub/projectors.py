"""The projector (mmproj file) that belongs to a model: beside its file, or in its repository."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelNotFound
from . import hugging_face as hf
from .references import repository, resolve
from .repositories import has_quantization

_PROJECTOR = re.compile(r"(^|[-_.])mmproj([-_.]|$)", re.IGNORECASE)
# half precision is what most repositories have and what costs nothing of what a model sees
_PREFERRED = ("F16", "FP16", "BF16", "Q8_0", "F32", "FP32")
_OF_ANY = {"", "model", "vision", "audio"}  # names that say nothing about the model


def projector_of(
    model: str | os.PathLike[str], path: Path, mmproj: str | os.PathLike[str] = "auto", *, progress: bool | None = None
) -> Path:
    """The projector's file, downloaded when it is missing.

    Args:
        model: the reference of the model, as it was given.
        path: the model's file.
        mmproj: "auto" looks beside that file for one that bears the model's name or none, then in the model's
            repository; otherwise a reference of its own.

    Raises:
        ModelNotFound: there is none, or several that could be meant.
        DownloadError, ChecksumError: as `resolve`.
    """
    if mmproj != "auto":
        return resolve(mmproj, progress=progress)
    there = sorted(file.name for file in path.parent.glob("*.gguf"))
    beside = choose_projector(there, path.name)
    if beside is not None:
        return path.parent / beside
    named = repository(model)
    if named is None:
        raise ModelNotFound(f"there is no projector of {path.name} beside it: name its file, mmproj='mmproj-….gguf'")
    repo, revision = named
    found = choose_projector(hf.files(repo, revision), path.name, of_one_model=True)
    if found is None:
        raise ModelNotFound(f"{repo} has no projector (mmproj-….gguf): name one, or the model reads text only")
    return resolve(f"{repo}:{found}" + (f"@{revision}" if revision else ""), progress=progress)


def choose_projector(files: Sequence[str], model: str, *, of_one_model: bool = False) -> str | None:
    """The projector among `files` that belongs to the model's file; None where none does.

    Args:
        of_one_model: all files are of this model (a repository): other names do.

    Raises:
        ModelNotFound: several do.
    """
    projectors = [file for file in files if file.endswith(".gguf") and _PROJECTOR.search(file.rpartition("/")[2])]
    bases = {file: _base(file) for file in projectors}
    wanted = model.lower()
    named = [file for file, base in bases.items() if base not in _OF_ANY and base in wanted]
    longest = max((len(bases[file]) for file in named), default=0)
    found = [file for file in named if len(bases[file]) == longest]
    found = found or [file for file, base in bases.items() if base in _OF_ANY] or (projectors if of_one_model else [])
    for kind in _PREFERRED:
        of_kind = [file for file in found if has_quantization(file, kind)]
        if of_kind:
            found = of_kind
            break
    if len(found) > 1:
        raise ModelNotFound(f"several projectors could be meant for {model}: name one of {', '.join(sorted(found))}")
    return found[0] if found else None


def _base(file: str) -> str:
    """A projector's name without what says that it is one, and of which type."""
    name = file.rpartition("/")[2].removesuffix(".gguf").lower()
    for word in ("mmproj", *(kind.lower() for kind in _PREFERRED)):
        name = re.sub(rf"(^|[-_.]){word}(?=[-_.]|$)", "", name)
    return name.strip("-_.")
