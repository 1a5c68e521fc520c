"""Run in a child process by core/test_closing.py: threads use objects while another one closes them.

    python -m tests.support.closing_worker MODEL FIRST_SEED ROUNDS

Every call ends in a result or an exception of llcuda_ffi (or IndexError), and every object that was not closed in a
round can be closed after it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llcuda_ffi import Batch, Context, Embedder, GGUFReader, Model, SamplerChain
from llcuda_ffi.core.state import restore_state, save_state
from llcuda_ffi.errors import LlcudaError

THREADS = 8
TEXT = "the quick brown fox jumps over the lazy dog " * 40


class Round:
    """One model, what was made from it, and what may be done to them in any order by any thread."""

    def __init__(self, path: str, rng: random.Random) -> None:
        self.path, self.rng = path, rng
        self.model = Model.load(path)
        self.context = Context(self.model, n_ctx=64, n_batch=32, n_seq_max=2, n_threads=1)
        self.chain = SamplerChain(self.model).top_k(5).grammar("root ::= [a-z ]*").greedy()
        self.embedder = Embedder(self.model, n_contexts=2, n_threads=1, max_tokens=64)
        self.reader = GGUFReader(path)
        # bound before the rounds: making it may itself meet a closed context
        memory = self.context.memory
        assert memory is not None
        self.memory = memory

    def decode(self) -> None:
        batch = Batch(8)
        batch.extend([5, 6, 7, 8], 0, self.rng.randrange(2), output="all")
        self.memory.clear()
        self.context.decode(batch)
        self.context.logits()

    def new_context(self) -> None:
        with Context(self.model, n_ctx=32, n_threads=1) as context:
            batch = Batch(4)
            batch.extend([1, 2, 3])
            context.decode(batch)

    def metadata(self) -> None:
        # asked again each time, not remembered
        self.model._metadata = None
        assert self.model.metadata

    def uses(self) -> list[Callable[[], object]]:
        vocab, n = self.model.vocab, self.rng.randrange(1, len(TEXT))
        return [
            lambda: vocab.tokenize(TEXT[:n]),
            lambda: vocab.tokenize(TEXT * 4),  # on a thread of its own
            lambda: vocab.detokenize(range(n % 300)),
            lambda: vocab.text(n % 300),
            lambda: (self.model.n_params, self.model.description, self.model.chat_template()),
            self.metadata,
            self.decode,
            self.decode,
            self.new_context,
            self.context.abort,
            lambda: self.context.embeddings(0),
            lambda: self.memory.copy(0, 1),
            lambda: restore_state(self.context, save_state(self.context, 0), 1),
            lambda: save_state(self.context),
            lambda: self.chain.sample(self.context),
            lambda: self.chain.apply(np.zeros(vocab.n_tokens, np.float32)),
            lambda: self.chain.clone().accept(97),
            lambda: SamplerChain(self.model).dry(0.5).infill().greedy(),
            lambda: self.embedder.encode([TEXT[:n], TEXT[:5]], truncate=True),
            lambda: self.embedder.encode_tokens(TEXT[:n], truncate=True),
            lambda: self.reader.get_tensor_data("token_embd.weight").sum(),
            lambda: dict(self.reader.metadata),
        ]

    def closes(self) -> list[Callable[[], object]]:
        return [self.model.close, self.context.close, self.chain.close, self.embedder.close, self.reader.close]

    def work(self, seed: int) -> None:
        """What one thread does."""
        rng = random.Random(seed)
        calls = self.uses()
        closing = rng.choice(self.closes()) if rng.random() < 0.3 else None
        at = rng.randrange(6)
        for i in range(6):
            try:
                if i == at and closing is not None:
                    closing()
                else:
                    rng.choice(calls)()
            except (LlcudaError, IndexError):
                pass


def main(path: str, first: int, rounds: int) -> None:
    """Run `rounds` from seed `first`."""
    with ThreadPoolExecutor(THREADS) as pool:
        for seed in range(first, first + rounds):
            objects = Round(path, random.Random(seed))
            list(pool.map(objects.work, range(seed * THREADS, (seed + 1) * THREADS)))
            for close in reversed(objects.closes()):
                close()
            assert objects.model.closed
            assert objects.context.closed
            assert objects.chain.closed
    print("survived", rounds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
