"""Batches that libllama would read out of bounds, or abort on."""

from __future__ import annotations

import functools

import numpy as np

from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.embedding_batch import EmbeddingBatch
from llcuda_ffi.errors import InvalidRequest, UnsupportedByBundle, UnsupportedModel

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


@row
def embeddings_of_a_wrong_kind(w: World) -> None:
    width = w.model().n_embd_inp
    rows, places = np.zeros((4, width), np.float32), np.arange(4, dtype=np.int32)
    for wrong in (rows[0], rows[:0], np.full_like(rows, np.nan), np.full_like(rows, np.inf)):
        refuses(InvalidRequest, functools.partial(Batch(8).embed, wrong, places))
    for wrong in (places[:3], places - 1, np.zeros((3, 4), np.int32), places[:, None]):
        refuses(InvalidRequest, functools.partial(Batch(8).embed, rows, wrong))
    refuses(InvalidRequest, lambda: Batch(3).embed(rows, places))
    for seq_id in (-1, 2**31):
        refuses(InvalidRequest, functools.partial(Batch(8).embed, rows, places, seq_id))
    narrow = EmbeddingBatch(rows[:, : width - 1], places, np.zeros(4, np.int32))
    refuses(InvalidRequest, lambda: w.context().decode_embeddings(narrow))


@row
def embeddings_beside_tokens(w: World) -> None:
    def mixed(width: int, *, seq: int = 0, pos: int = 4) -> Batch:
        batch = Batch(64)
        batch.extend([1, 2, 3, 4])
        batch.embed(np.zeros((4, width), np.float32), np.arange(pos, pos + 4, dtype=np.int32), seq)
        batch.extend([5], pos + 4, seq)
        return batch

    context, width = w.context(), w.model().n_embd_inp
    if not context.mixes_embeddings:
        refuses(UnsupportedByBundle, lambda: context.decode(mixed(width)))
        return
    refuses(InvalidRequest, lambda: context.decode(mixed(width - 1)))
    refuses(InvalidRequest, lambda: context.decode(mixed(width + 1)))
    refuses(InvalidRequest, lambda: context.decode(mixed(width, seq=1)))
    refuses(InvalidRequest, lambda: context.decode(mixed(width, pos=9)))
    cut, token = mixed(width), mixed(width)
    cut.n_tokens = 6
    token.token[1] = -1
    refuses(InvalidRequest, lambda: context.decode(cut))
    refuses(InvalidRequest, lambda: context.decode(token))
    refuses(InvalidRequest, lambda: w.context(n_batch=8).decode(mixed(width)))
    context.decode(mixed(width))
    for name in ("bert", "t5"):
        other = w.context(name, embeddings=name == "bert")
        refuses(UnsupportedModel, functools.partial(other.decode, mixed(w.model(name).n_embd_inp)))
