"""What tiny seers compute here: run as a process of its own, since torch brings another libgomp.

    python -m tests.support.seer_worker N_UBATCH,… FOLDER…

Reads FOLDER/medium.npy, writes FOLDER/ours.npz: the prompt's tokens (the medium's as −1), the embeddings, and for each
size of micro-batch the log probabilities of the first token and the tokens chosen greedily.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from llcuda_ffi import Llama
from llcuda_ffi.core.projector import Image, MediaChunk, Sound

BEFORE, AFTER = "the quick brown fox saw ", " and said that"
BUNDLE, N_TOKENS = "v0.6.0-cpu", 8


def compute(folder: Path, sizes: list[int]) -> None:
    """See above."""
    medium = np.load(folder / "medium.npy")
    part = Image(medium) if medium.dtype == np.uint8 else Sound(medium)
    found: dict[str, np.ndarray] = {}
    for n_ubatch in sizes:
        with Llama(
            folder / "text.gguf", mmproj=folder / "mmproj.gguf", bundle=BUNDLE, n_ctx=1024, n_parallel=2, n_batch=1024,
            n_ubatch=n_ubatch, flash_attn=False, kv_type="f32",
        ) as llm:  # fmt: skip
            assert llm.media is not None
            prompt = llm.media_prompt([BEFORE, part, AFTER])
            chunks = llm.media.encode(llm.media.read("image" if isinstance(part, Image) else "audio", part)).chunks
            assert chunks is not None
            found["embeddings"] = np.concatenate([c.embeddings for c in chunks if isinstance(c, MediaChunk)])
            found["tokens"] = np.maximum(prompt.tokens, -1)
            greedy = {"temperature": 0, "logprobs": llm.vocab.n_tokens, "ignore_eos": True}
            done = llm.generate(prompt, max_tokens=N_TOKENS, **greedy)
            entries = done.logprobs
            assert entries is not None
            found[f"logprobs_{n_ubatch}"] = np.array([value for _, value in sorted(entries[0].top)], np.float32)
            found[f"greedy_{n_ubatch}"] = np.array(done.token_ids, np.int32)
            again = llm.generate(prompt, max_tokens=1, **greedy)
            assert again.logprobs is not None
            found[f"again_{n_ubatch}"] = np.array([v for _, v in sorted(again.logprobs[0].top)], np.float32)
            found[f"cached_{n_ubatch}"] = np.array(again.usage.cached_tokens)
    np.savez(folder / "ours.npz", **found)


if __name__ == "__main__":
    for place in sys.argv[2:]:
        compute(Path(place), [int(size) for size in sys.argv[1].split(",")])
