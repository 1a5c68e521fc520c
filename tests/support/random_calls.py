"""Run in a child process by core/test_random_calls.py: random sequences of low-level calls against a small model.

    python -m tests.support.random_calls MODEL FIRST_SEED COUNT

Whatever is called in whatever order with whatever numbers: an exception of llcuda_ffi (or IndexError), or a result.
After each sequence the model must still give its known logits.
"""

from __future__ import annotations

import random
import sys

import numpy as np

from llcuda_ffi import Batch, Context, Model, SamplerChain
from llcuda_ffi.core.state import SavedState, restore_state, save_state
from llcuda_ffi.errors import LlcudaError

NUMBERS = [-(2**31), -300, -2, -1, 0, 1, 2, 3, 4, 7, 31, 64, 300, 2**31 - 1, 2**31, 2**40]


def main(path: str, first: int, count: int) -> None:
    """Run `count` sequences from seed `first`."""
    model = Model.load(path)
    probe = list(range(5, 11))
    want = _answer(model, probe)
    for seed in range(first, first + count):
        _sequence(model, random.Random(seed))
        assert np.array_equal(_answer(model, probe), want), f"seed {seed}: the model answers otherwise"
    print("survived", count)


def _answer(model: Model, tokens: list[int]) -> np.ndarray:
    with Context(model, n_ctx=64) as context:
        batch = Batch(len(tokens))
        batch.extend(tokens)
        context.decode(batch)
        return context.logits()


def _sequence(model: Model, rng: random.Random) -> None:
    n_seq = rng.choice([1, 2, 4])
    unified = rng.random() < 0.5
    context = Context(
        model,
        n_ctx=rng.choice([64, 256]) * n_seq,
        n_batch=32,
        n_ubatch=rng.choice([8, 32]),
        n_seq_max=n_seq,
        kv_unified=unified,
    )
    memory = context.memory
    assert memory is not None
    batch = Batch(rng.choice([4, 32, 64]), rng.choice([1, n_seq]))
    chain = SamplerChain(model)
    saved: list[SavedState] = []

    def n() -> int:
        return rng.choice(NUMBERS) if rng.random() < 0.3 else rng.randrange(0, 8)

    def tokens() -> list[int]:
        ids = [rng.randrange(model.vocab.n_tokens) for _ in range(rng.randrange(0, 20))]
        return ids if rng.random() < 0.9 else [*ids, n()]

    def scribble() -> None:
        array = rng.choice([batch.token, batch.pos, batch.seq[:, 0], batch.n_seq, batch.output])
        array[rng.randrange(len(array))] = rng.choice([-1, 0, 1, 5, 100, 2**31 - 1]) if array.itemsize == 4 else 1
        batch.n_tokens = rng.choice([batch.n_tokens, rng.randrange(-1, 70)])

    def build() -> None:
        nonlocal chain
        step = rng.choice(
            [
                lambda: chain.top_k(n()),
                lambda: chain.top_p(rng.random() * 1.2),
                lambda: chain.min_p(rng.random(), n()),
                lambda: chain.temperature(rng.random() * 2 - 0.1),
                lambda: chain.penalties(n(), rng.random() + 0.5, rng.random()),
                lambda: chain.dry(rng.random(), last_n=n()),
                lambda: chain.xtc(rng.random(), rng.random(), n()),
                lambda: chain.typical(rng.random()),
                lambda: chain.logit_bias({n(): 1.0}),
                lambda: chain.grammar(rng.choice(['root ::= "a"', "root ::= [a-z]+", "root ::= x", "("])),
                lambda: chain.greedy(),
                lambda: chain.dist(n()),
                lambda: chain.mirostat_v2(),
                lambda: chain.reset(),
            ]
        )
        step()
        if rng.random() < 0.2:
            chain = chain.clone()
        if rng.random() < 0.2:
            chain = SamplerChain(model)

    moves = [
        lambda: memory.remove(n(), n(), None if rng.random() < 0.5 else n()),
        lambda: memory.copy(n(), n(), n(), None if rng.random() < 0.5 else n()),
        lambda: memory.keep(n()),
        lambda: memory.shift(n(), n(), n(), None if rng.random() < 0.5 else n()),
        lambda: memory.divide(n(), n(), n(), None if rng.random() < 0.5 else n()),
        lambda: memory.clear(data=rng.random() < 0.5),
        lambda: memory.positions(n()),
        lambda: batch.add(n(), n(), n(), output=rng.random() < 0.5),
        lambda: batch.extend(tokens(), n(), n(), output=rng.choice(["last", "all", "none"])),
        lambda: batch.extend(tokens(), n(), n()),
        batch.clear,
        scribble,
        lambda: context.decode(batch),
        lambda: context.decode(batch),
        lambda: context.encode(batch),
        lambda: context.logits(n()),
        lambda: context.embeddings(n()),
        lambda: context.sequence_embedding(n()),
        lambda: context.set_threads(n()),
        lambda: context.set_causal(rng.random() < 0.7),
        lambda: context.set_embeddings(rng.random() < 0.3),
        lambda: saved.append(save_state(context, None if rng.random() < 0.3 else n())),
        lambda: restore_state(context, rng.choice(saved), None if rng.random() < 0.3 else n()) if saved else None,
        build,
        build,
        lambda: chain.sample(context, n()),
        lambda: chain.accept(n()),
        lambda: chain.apply(np.zeros(model.vocab.n_tokens, np.float32)),
    ]
    for _ in range(rng.randrange(5, 60)):
        try:
            rng.choice(moves)()
        except (LlcudaError, IndexError):
            pass
    if rng.random() < 0.5:
        context.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
