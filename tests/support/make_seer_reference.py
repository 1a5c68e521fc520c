"""Writes tests/data/seers.json: how the tiny models that see or hear are made, and what transformers computes of them.

    python -m tests.support.make_seer_reference [NAME…]     (with the extra test-heavy; two minutes)

A recipe names for each tensor of the converted files the parameter of transformers that it comes from; the parameters'
values are made of their names (seer_weights.py), so that no weights are kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType

from .hugging_seers import Family
from .seer_families import FAMILIES
from .seer_weights import MEDIA, MEDIUM, OPERATIONS, weights

TARGET = Path(__file__).parents[1] / "data" / "seers.json"
_LEFT_OUT = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")


def recipe(path: Path, model: Any) -> dict[str, Any]:
    """Metadata and tensors of a file, each with the parameter that it comes from."""
    reader = GGUFReader(path)
    sources = {name: weights(name, tuple(p.shape)) for name, p in model.named_parameters()}
    tensors = []
    for tensor in reader.tensors:
        data = np.asarray(tensor.data, np.float32)
        found = next(
            (source, list(values.shape), name)
            for source, values in sources.items()
            for name, operation in OPERATIONS.items()
            if _same(operation, values, data)
        )
        tensors.append([tensor.name, *found, [int(n) for n in tensor.shape], int(tensor.tensor_type)])
    metadata = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in _LEFT_OUT:
            kinds = [GGUFValueType(kind).name.lower().replace("int", "").replace("float", "f") for kind in field.types]
            names = [{"string": "str", "8": "i8", "16": "i16", "32": "i32", "64": "i64"}.get(k, k) for k in kinds]
            metadata[key] = [names[0], field.contents(), *names[1:]]
    return {"metadata": metadata, "tensors": tensors}


def _same(operation: Any, values: np.ndarray, data: np.ndarray) -> bool:
    try:
        made = operation(values)
    except (IndexError, ValueError):
        return False
    return bool(made.size == data.size and np.allclose(made.reshape(data.shape), data, atol=2e-3))


def expected(family: Family, model: Any, tokens: np.ndarray, n: int = 8) -> list[np.ndarray]:
    """The log probabilities of n tokens chosen greedily, float64 (n_vocab,) each.

    Args:
        tokens: the prompt, the medium's places negative.
    """
    ids = torch.tensor(np.where(tokens < 0, MEDIUM, tokens))[None].long()
    medium, steps = MEDIA[family.name](), []
    for _ in range(n):
        with torch.no_grad():
            given = family.inputs(medium, ids)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **given).logits
        steps.append(torch.log_softmax(logits[0, -1].double(), -1).numpy())
        ids = torch.cat([ids, torch.tensor([[int(steps[-1].argmax())]])], 1)
    return steps


def main() -> None:
    """See above."""
    found = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    for name in sys.argv[1:] or FAMILIES:
        family = FAMILIES[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder, model = Path(temporary), family.model()
            family.write(model, folder)
            np.save(folder / "medium.npy", MEDIA[name]())
            subprocess.run([sys.executable, "-m", "tests.support.seer_worker", "1024", temporary], check=True)
            tokens = np.load(folder / "ours.npz")["tokens"]
            steps = expected(family, model, tokens)
            found[name] = {
                "text": recipe(folder / "text.gguf", model),
                "mmproj": recipe(folder / "mmproj.gguf", model),
                "n_media": int((tokens < 0).sum()),
                "logprobs": [round(float(value), 4) for value in steps[0]],
                "greedy": [int(step.argmax()) for step in steps],
                "gaps": [round(float(np.diff(np.sort(step)[-2:])[0]), 4) for step in steps],
            }
    lines = [f" {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in found.items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
