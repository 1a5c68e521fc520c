"""Embeddings beside tokens in one computation: what comes out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import bundles

from ..support.child_process import run_child
from ..support.seer_weights import MEDIA, write_seer

FAMILIES = ("qwen2.5-vl", "qwen3-vl", "smolvlm")  # M-RoPE, deepstack, many pieces
START = """
import sys
from pathlib import Path
import numpy as np
from llcuda_ffi import Llama
folder = Path(sys.argv[1])
BUNDLE = "v0.6.0-cpu"
SETTINGS = {"flash_attn": False, "kv_type": "f32", "n_threads": 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models that see."""
    bundles.ensure("v0.6.0-cpu", progress=False)
    folder = tmp_path_factory.mktemp("mixed")
    recipes = json.loads((Path(__file__).parents[1] / "data" / "seers.json").read_text(encoding="utf-8"))
    for name in FAMILIES:
        (folder / name).mkdir()
        write_seer(recipes[name], folder / name)
        np.save(folder / name / "medium.npy", MEDIA[name]())
    return folder


def test_as_computed_apart(place: Path) -> None:
    """Logits of a prompt with an image, and of another sequence's token in the same batch, are those of separate
    calls; the image whole, and cut into batches at any place beside that sequence's tokens."""
    out = run_child(
        START
        + f"""
from llcuda_ffi.core.batch import Batch
from llcuda_ffi.core.context import Context
from llcuda_ffi.core.embedding_batch import EmbeddingBatch
MODES = {{"n_ctx": 1024, "n_seq_max": 2, "n_batch": 256, "flash_attn_type": "DISABLED"}}
MODES |= {{"type_k": "F32", "type_v": "F32"}}
rng = np.random.default_rng(0)

def pieces(prompt):
    for begin, stop, span in prompt.pieces(0, len(prompt)):
        yield begin, stop, span, begin + prompt.moved(begin)

def apart(context, prompt):
    context.memory.clear()
    batch = Batch(256)
    for begin, stop, span, position in pieces(prompt):
        if span is None:
            batch.clear()
            batch.extend(prompt.tokens[begin:stop], position, 1)
            context.decode(batch)
            continue
        embeddings, places = prompt.embedded(span, begin, stop)
        context.decode_embeddings(EmbeddingBatch(embeddings, places, np.full(stop - begin, 1, np.int32)))
    image = context.logits(-1)
    other = []
    for n in range(40):
        batch.clear()
        batch.extend([5 + n], n, 0)
        context.decode(batch)
        other.append(context.logits(-1))
    return image, other

def mixed(context, prompt, most):
    context.memory.clear()
    batch, other, n = Batch(256), [], 0
    while n < len(prompt):
        batch.clear()
        batch.extend([5 + len(other)], len(other), 0)
        stop = min(len(prompt), n + int(rng.integers(1, most)))
        for first, beyond, span in prompt.pieces(n, stop):
            if span is None:
                batch.extend(prompt.tokens[first:beyond], first + prompt.moved(first), 1)
            else:
                batch.embed(*prompt.embedded(span, first, beyond), 1)
        context.decode(batch)
        other.append(context.logits(0))
        last = context.logits(batch.n_tokens - 1) if stop == len(prompt) else None
        n = stop
    return last, other

for name in {FAMILIES!r}:
    image = np.load(folder / name / "medium.npy")
    with Llama(folder / name / "text.gguf", mmproj=folder / name / "mmproj.gguf", bundle=BUNDLE, n_ctx=64) as llm:
        prompt = llm.media_prompt(["the dog ", image, " ran and ", image, " said that"])
        for unified in (False, True):
            with Context(llm.model, kv_unified=unified, **MODES) as context:
                assert context.mixes_embeddings
                image_alone, other_alone = apart(context, prompt)
                for most in (200, 30, 8):
                    last, other = mixed(context, prompt, most)
                    found = [(last, image_alone), *zip(other[:40], other_alone)]
                    worst = max(np.abs(a - b).max() for a, b in found)
                    assert worst < 5e-6, (name, unified, most, worst)
                    print(name, unified, most)
""",
        place,
        timeout=200,
    )
    assert len(out.splitlines()) == 3 * 2 * 3, out


def test_beside_running_streams(place: Path) -> None:
    """Images that come while others write: the streams and the answers are those of a quiet Llama, with batches that
    cut images anywhere; an embedding that is no number is refused before it is computed."""
    out = run_child(
        START
        + """
import dataclasses
from llcuda_ffi.errors import InvalidRequest
for name in ("qwen2.5-vl", "smolvlm"):
    image = np.load(folder / name / "medium.npy")
    with Llama(
        folder / name / "text.gguf", mmproj=folder / name / "mmproj.gguf", bundle=BUNDLE, n_ctx=512, n_parallel=4,
        n_ubatch=16, n_batch=64, **SETTINGS,
    ) as llm:
        prompt = llm.media_prompt(["the dog ", image, " ran and ", image, " said that"])
        other = llm.media_prompt([image, " and then"])
        top = {"temperature": 0, "logprobs": llm.vocab.n_tokens, "ignore_eos": True, "prefix_cache": False}

        def rows(done):
            return np.array([[value for _, value in sorted(entry.top)] for entry in done.logprobs])

        alone = [llm.generate(p, max_tokens=4, **top) for p in (prompt, other)]
        want = llm.generate("one two three", max_tokens=20, **top)
        for span in prompt.spans:
            for value in (np.nan, np.inf):
                bad = span.embeddings.copy()
                bad[-1, 3] = value
                spans = tuple(dataclasses.replace(s, embeddings=bad) if s is span else s for s in prompt.spans)
                try:
                    llm.generate(dataclasses.replace(prompt, spans=spans))
                    raise SystemExit("taken")
                except InvalidRequest as error:
                    assert "finite" in str(error)
        for wrong in (
            {"n_pos": 0}, {"start": 0}, {"embeddings": span.embeddings[:, 1:]}, {"start": len(prompt)},
            {"positions": None if span.positions is not None else np.zeros((4, len(span.embeddings)), np.int32)},
        ):
            spans = (*prompt.spans[:-1], dataclasses.replace(span, **wrong))
            try:
                llm.generate(dataclasses.replace(prompt, spans=spans))
                raise SystemExit(f"taken {wrong}")
            except InvalidRequest:
                pass
        found = llm.generate(["one two three", prompt, other, prompt], max_tokens=20, **top)
        assert np.abs(rows(found[0]) - rows(want)).max() < 1e-4
        for done, first in zip(found[1:], (alone[0], alone[1], alone[0])):
            assert np.abs(rows(done)[:4] - rows(first)).max() < 1e-4
        stream = llm.stream("one two three", max_tokens=20, **top)
        for _ in range(3):
            next(stream)
        beside = llm.generate([other, prompt], max_tokens=4, **top)
        for done, first in zip(beside, (alone[1], alone[0])):
            assert np.abs(rows(done) - rows(first)).max() < 1e-4
        *_, last = stream
        assert np.abs(rows(last.completion) - rows(want)).max() < 1e-4
        print(name)
""",
        place,
        timeout=200,
    )
    assert out.split() == ["qwen2.5-vl", "smolvlm"]
