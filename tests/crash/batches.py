"""Batches that libllama would read out of bounds, or abort on."""

from __future__ import annotations

import functools

import numpy as np

from llcuda_ffi.errors import InvalidRequest, UnsupportedModel

from .world import World, refuses, row


@row
def more_tokens_than_n_batch(w: World) -> None:
    refuses(InvalidRequest, lambda: w.context().decode(w.batch(33)))


@row
def non_causal_batch_larger_than_n_ubatch(w: World) -> None:
    context = w.context(n_ubatch=8)
    context.decode(w.batch(9))
    context.memory.clear()  # type: ignore[union-attr]
    context.set_causal(False)
    refuses(InvalidRequest, lambda: context.decode(w.batch(9)))
    refuses(InvalidRequest, lambda: w.context(n_ubatch=8, attention_type="NON_CAUSAL").decode(w.batch(9)))
    bert = w.context("bert", n_ubatch=8, embeddings=True)
    refuses(InvalidRequest, lambda: bert.encode(w.batch(9)))
    refuses(InvalidRequest, lambda: bert.decode(w.batch(9)))


@row
def count_of_tokens_that_is_not_true(w: World) -> None:
    for n in (-1, 0, 5, 1 << 40):
        batch = w.batch(4)
        batch.n_tokens = n
        refuses(InvalidRequest, functools.partial(w.context().decode, batch))
        refuses(InvalidRequest, functools.partial(w.context("bert", embeddings=True).encode, batch))


@row
def token_out_of_range(w: World) -> None:
    for token in (-1, w.model().vocab.n_tokens, 2**31 - 1):
        batch = w.batch(4)
        batch.token[2] = token
        refuses(InvalidRequest, functools.partial(w.context().decode, batch))


@row
def sequence_out_of_range(w: World) -> None:
    for seq in (-1, 1, 300, 2**31 - 1):
        batch = w.batch(4)
        batch.seq[2, 0] = seq
        refuses(InvalidRequest, functools.partial(w.context().decode, batch))


@row
def gap_in_the_positions(w: World) -> None:
    refuses(InvalidRequest, lambda: w.decoded().decode(w.batch(1, pos=9)))
    refuses(InvalidRequest, lambda: w.decoded().decode(w.batch(1, pos=1)))


@row
def negative_position(w: World) -> None:
    batch = w.batch(1)
    batch.pos[0] = -1
    refuses(InvalidRequest, lambda: w.context().decode(batch))
    refuses(InvalidRequest, lambda: w.batch(1, pos=-1))


@row
def position_beyond_learned_ones(w: World) -> None:
    context = w.context("gpt2", n_ctx=1024)
    refuses(InvalidRequest, lambda: context.decode(w.batch(1, pos=600)))


@row
def number_of_sequences_of_a_token(w: World) -> None:
    for n in (0, -1, 5, 2**31 - 1):
        batch = w.batch(4)
        batch.n_seq[1] = n
        refuses(InvalidRequest, functools.partial(w.context().decode, batch))
    refuses(InvalidRequest, lambda: w.batch().add(1, 5, []))


@row
def batch_arrays_replaced_or_resized(w: World) -> None:
    batch = w.batch(4)
    refuses(ValueError, lambda: batch.token.resize(0))
    batch.token = np.zeros(8, np.int32)
    refuses(InvalidRequest, lambda: w.context().decode(batch))


@row
def encode_without_an_encoder(w: World) -> None:
    refuses(UnsupportedModel, lambda: w.context().encode(w.batch()))
    refuses(UnsupportedModel, lambda: w.context("mamba").encode(w.batch()))


@row
def decoder_before_encoder(w: World) -> None:
    refuses(InvalidRequest, lambda: w.context("t5").decode(w.batch()))
    context = w.context("t5")
    context.encode(w.batch())
    context.decode(w.batch(1))


@row
def more_outputs_than_n_outputs_max(w: World) -> None:
    context = w.context(n_outputs_max=2)
    refuses(InvalidRequest, lambda: context.decode(w.batch(3, output="all")))
    context.decode(w.batch(2, output="all"))
    both = w.context(n_outputs_max=2, embeddings=True)
    refuses(InvalidRequest, lambda: both.decode(w.batch(3, output="none")))
