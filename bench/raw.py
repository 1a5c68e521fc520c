"""The floor to compare with: minimal loops of C calls through cffi, over the library and the model already loaded.

No text, no checks, no requests: a batch, llama_decode, llama_sampler_sample. What the package takes beyond this is
its own cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llcuda_ffi.core.model import Model
from llcuda_ffi.sampling_params import SamplingParams


class RawLoop:
    """One context of its own with room for `n_parallel` sequences of `n_ctx` tokens."""

    def __init__(self, model: Model, *, n_ctx: int, n_parallel: int, n_threads: int) -> None:
        library = model.library
        self.ffi, self.lib, self.model = library.ffi, library.lib, model
        params = self.ffi.new("struct llama_context_params *", self.lib.llama_context_default_params())
        params.n_ctx, params.n_seq_max = n_ctx * n_parallel, n_parallel
        params.n_batch, params.n_ubatch = max(512, n_parallel), 512
        params.n_threads = params.n_threads_batch = n_threads
        self.context = self.lib.llama_init_from_model(model.pointer, params[0])
        assert self.context
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(params.n_batch, 0, 1)

    def chain(self, params: SamplingParams, seed: int) -> Any:
        """The samplers that the package would use for these settings, made by C calls."""
        ffi, lib = self.ffi, self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        n_vocab = self.model.vocab.n_tokens
        if params.ignore_eos:
            bias = ffi.new("llama_logit_bias[]", [(t, float("-inf")) for t in self.model.vocab.eog_tokens])
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(n_vocab, len(bias), bias))
        if params.greedy:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(params.top_k))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(params.top_p, 0))
        if params.min_p > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_min_p(params.min_p, 0))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp_ext(params.temperature, 0.0, 1.0))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        return chain

    def run(
        self, prompts: Sequence[Sequence[int]], n_tokens: int, params: SamplingParams, seed: int = 1
    ) -> list[list[int]]:
        """`n_tokens` for each prompt, all together in one batch per step."""
        lib, context, batch = self.lib, self.context, self.batch
        decode, sample, size = lib.llama_decode, lib.llama_sampler_sample, batch.n_tokens
        lib.llama_memory_clear(self.memory, False)
        chains = [self.chain(params, seed + i) for i in range(len(prompts))]
        out: list[list[int]] = [[] for _ in prompts]
        rows: list[tuple[int, int]] = []
        # prompts, packed into batches of at most 512 tokens
        size = 0
        for s, prompt in enumerate(prompts):
            for pos, token in enumerate(prompt):
                if size == 512:
                    size = self._flush(size, rows, out, chains)
                batch.token[size], batch.pos[size], batch.n_seq_id[size] = token, pos, 1
                batch.seq_id[size][0], batch.logits[size] = s, pos == len(prompt) - 1
                if pos == len(prompt) - 1:
                    rows.append((s, size))
                size += 1
        self._flush(size, rows, out, chains)
        n = len(prompts)
        for i in range(n):
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i, 1
        batch.n_tokens = n
        token, pos = batch.token, batch.pos
        start = [len(p) for p in prompts]
        for step in range(n_tokens - 1):
            for i in range(n):
                token[i] = out[i][-1]
                pos[i] = start[i] + step
            if decode(context, batch):
                raise RuntimeError("llama_decode failed")
            for i in range(n):
                out[i].append(sample(chains[i], context, i))
        for chain in chains:
            lib.llama_sampler_free(chain)
        return out

    def run_one(self, prompt: Sequence[int], n_tokens: int, params: SamplingParams, seed: int = 1) -> list[int]:
        """The simplest loop there is: one sequence, one token at a time."""
        ffi, lib, context = self.ffi, self.lib, self.context
        decode, sample, one = lib.llama_decode, lib.llama_sampler_sample, lib.llama_batch_get_one
        lib.llama_memory_clear(self.memory, False)
        chain = self.chain(params, seed)
        tokens = ffi.new("llama_token[]", list(prompt))
        cell = ffi.new("llama_token[1]")
        for start in range(0, len(prompt), 512):
            if decode(context, one(tokens + start, min(512, len(prompt) - start))):
                raise RuntimeError("llama_decode failed")
        token = sample(chain, context, -1)
        out = [token]
        while len(out) < n_tokens:
            cell[0] = token
            if decode(context, one(cell, 1)):
                raise RuntimeError("llama_decode failed")
            token = sample(chain, context, -1)
            out.append(token)
        lib.llama_sampler_free(chain)
        return out

    def _flush(self, size: int, rows: list[tuple[int, int]], out: list[list[int]], chains: list[Any]) -> int:
        self.batch.n_tokens = size
        if self.lib.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        for s, row in rows:
            out[s].append(self.lib.llama_sampler_sample(chains[s], self.context, row))
        rows.clear()
        return 0

    def close(self) -> None:
        """Free the context and the batch."""
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
