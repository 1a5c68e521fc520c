"""What a tiny seer computes here: run as a process of its own, since torch brings another libgomp.

    python -m tests.support.seer_worker FOLDER N_UBATCH…

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


def main() -> None:
    """See above."""
    folder = Path(sys.argv[1])
    medium = np.load(folder / "medium.npy")
    part = Image(medium) if medium.dtype == np.uint8 else Sound(medium)
    found: dict[str, np.ndarray] = {}
    for n_ubatch in map(int, sys.argv[2:]):
        with Llama(
            folder / "text.gguf", mmproj=folder / "mmproj.gguf", bundle=BUNDLE, n_ctx=1024, n_parallel=2, n_batch=1024,
            n_ubatch=n_ubatch, flash_attn=False, kv_type="f32",
        ) as llm:  # fmt: skip
            assert llm.media is not None
            prompt = llm.media_prompt([BEFORE, part, AFTER])
            _, chunks = llm.media.chunks(part)
            found["embeddings"] = np.concatenate([c.embeddings for c in chunks if isinstance(c, MediaChunk)])
            found["tokens"] = np.maximum(prompt.tokens, -1)
            done = llm.generate(prompt, max_tokens=N_TOKENS, temperature=0, logprobs=llm.vocab.n_tokens, ignore_eos=True)
            entries = done.logprobs
            assert entries is not None
            found[f"logprobs_{n_ubatch}"] = np.array([value for _, value in sorted(entries[0].top)], np.float32)
            found[f"greedy_{n_ubatch}"] = np.array(done.token_ids, np.int32)
            again = llm.generate(prompt, max_tokens=1, temperature=0, logprobs=llm.vocab.n_tokens)
            assert again.logprobs is not None
            found[f"again_{n_ubatch}"] = np.array([v for _, v in sorted(again.logprobs[0].top)], np.float32)
            found[f"cached_{n_ubatch}"] = np.array(again.usage.cached_tokens)
    np.savez(folder / "ours.npz", **found)


if __name__ == "__main__":
    main()
