"""A folder of tiny models of every kind that a server takes."""

from __future__ import annotations

from pathlib import Path

from llcuda_ffi.conversion.bert import convert_bert

from ..crash.memory import lora
from .tiny_bert import write_tiny_bert
from .tiny_model import bpe, make_tiny_bert, make_tiny_llama, tiny_llama


def write_model_folder(folder: Path) -> Path:
    """Text models `one`, `two` and `code` (with marks for filling in), `vectors`, `ranker`; returns the folder.

    An adapter of `one` lies beside it, as FOLDER.lora.
    """
    folder.mkdir()
    make_tiny_llama(folder / "one.gguf")
    make_tiny_llama(folder / "two.gguf", seed=1)
    first = len(bpe()[0])  # the control tokens stand behind the words
    marks = {f"tokenizer.ggml.fim_{name}_token_id": first + i for i, name in enumerate(("pre", "suf", "mid"))}
    make_tiny_llama(folder / "code.gguf", marks)
    make_tiny_bert(folder / "vectors.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF and nothing more")
    (folder / "mmproj-one.gguf").write_bytes(b"no model of its own")
    convert_bert(write_tiny_bert(folder.with_suffix(".hf"), head=True), folder / "ranker.gguf", "f32")
    lora(tiny_llama(), adapter__lora__alpha=4000.0).write(folder.with_suffix(".lora"))
    return folder
