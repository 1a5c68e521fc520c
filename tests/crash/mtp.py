"""Layers of multi-token prediction computed where they are not, or fed what they cannot take."""

from __future__ import annotations

import functools

import numpy as np

from llcuda_ffi.core.context import Context
from llcuda_ffi.core.embedding_batch import EmbeddingBatch
from llcuda_ffi.core.hidden_batch import HiddenBatch
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.state import restore_state, save_state
from llcuda_ffi.errors import InvalidRequest, LlcudaError, UnsupportedByBundle, UnsupportedModel

from ..support.tiny_architectures import EMBD
from ..support.tiny_mtp import tiny_glm4moe, tiny_qwen35_mtp
from .world import World, refuses, row

SIZES = {"n_ctx": 64, "n_batch": 32, "n_threads": 1}


def drafting(w: World) -> Model | None:
    """A model with such layers; None where the bundle has none."""
    if not w.model().library.profile.has("context_params.ctx_type"):
        refuses(UnsupportedByBundle, lambda: w.load(tiny_glm4moe(), "mtp", load_mtp=True))
        refuses(UnsupportedByBundle, lambda: w.context(mtp=True))
        return None
    return w.load(tiny_glm4moe(), "mtp", load_mtp=True)


def hidden(n: int = 3, width: int = EMBD) -> HiddenBatch:
    batch = HiddenBatch(max(n, 1), width)
    batch.extend(np.arange(1, n + 1), 1, output="all")
    batch.hidden[:] = 0.5
    return batch


@row
def mtp_layers_that_are_not_there(w: World) -> None:
    if drafting(w) is None:
        return
    refuses(UnsupportedModel, lambda: w.context(mtp=True))
    refuses(UnsupportedModel, lambda: w.context("qwen35").keep_hidden())
    for make in (tiny_glm4moe, tiny_qwen35_mtp):
        model = w.load(make(), "mtp-not-loaded")
        refuses(InvalidRequest, functools.partial(Context, model, mtp=True, **SIZES))
        refuses(InvalidRequest, Context(model, **SIZES).keep_hidden)
    refuses(UnsupportedModel, lambda: Context(w.load(tiny_qwen35_mtp(2), "mtp-2", load_mtp=True), mtp=True, **SIZES))
    for make in (tiny_glm4moe, tiny_qwen35_mtp):  # some versions load a file without their weights
        file = make()
        file.tensors = {name: tensor for name, tensor in file.tensors.items() if ".nextn." not in name}
        refuses(LlcudaError, lambda file=file: Context(w.load(file, "mtp-lost", load_mtp=True), mtp=True, **SIZES))


@row
def batches_of_mtp_layers(w: World) -> None:
    model = drafting(w)
    if model is None:
        return
    drafts, plain = Context(model, mtp=True, **SIZES), Context(model, **SIZES)
    refuses(InvalidRequest, lambda: drafts.decode(w.batch()))
    refuses(InvalidRequest, lambda: plain.decode(hidden()))
    refuses(UnsupportedModel, lambda: drafts.encode(hidden()))
    pieces = EmbeddingBatch(np.ones((2, EMBD), np.float32), np.arange(2, dtype=np.int32), np.zeros(2, np.int32))
    refuses(InvalidRequest, lambda: drafts.decode_embeddings(pieces))
    for width in (1, EMBD - 1, 2 * EMBD):
        refuses(InvalidRequest, lambda width=width: drafts.decode(hidden(width=width)))
    refuses(InvalidRequest, lambda: drafts.decode(hidden(0)))
    refuses(InvalidRequest, lambda: drafts.decode(hidden(33)))
    refuses(InvalidRequest, lambda: HiddenBatch(4, 0))
    bad = hidden()
    bad.hidden[1, 1] = np.nan
    refuses(InvalidRequest, lambda: drafts.decode(bad))
    bad = hidden()
    bad.hidden = bad.hidden.copy()
    refuses(InvalidRequest, lambda: drafts.decode(bad))
    bad = hidden()
    bad.output[0] = 0
    refuses(InvalidRequest, lambda: drafts.decode(bad))
    bad.output[:] = 0
    drafts.decode(bad)
    drafts.keep_hidden()
    refuses(InvalidRequest, lambda: drafts.hidden(3))
    assert drafts.memory is not None
    drafts.memory.clear()
    drafts.decode(hidden())
    assert np.isfinite(drafts.logits(2)).all()
    assert drafts.hidden(3).shape == (3, EMBD)
    refuses(LlcudaError, lambda: drafts.decode(hidden()))  # its positions are there already
    plain.decode(w.batch())
    for a, b in ((plain, drafts), (drafts, plain)):
        try:
            restore_state(b, save_state(a, 0), 0)
        except LlcudaError:
            pass


@row
def hidden_states_that_are_not_there(w: World) -> None:
    model = drafting(w)
    if model is None:
        return
    context, drafts = Context(model, **SIZES), Context(model, mtp=True, **SIZES)
    context.decode(w.batch())
    refuses(InvalidRequest, lambda: context.hidden(4))
    context.keep_hidden()
    refuses(InvalidRequest, lambda: context.hidden(4))  # they were not kept yet
    context.decode(w.batch(4, 4))
    assert context.hidden(4).shape == (4, EMBD)
    for n in (5, 32, 33, 2**31 - 1):
        refuses(IndexError, lambda n=n: context.hidden(n))
    for n in (0, -1, 1.5, 2**31):
        refuses(InvalidRequest, lambda n=n: context.hidden(n))
    refuses(IndexError, lambda: drafts.hidden(1))  # nothing was computed
    refuses(InvalidRequest, lambda: w.decoded().hidden(1))
    context.close()
    refuses(LlcudaError, lambda: context.hidden(1))
