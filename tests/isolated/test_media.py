"""`Llama(…, mmproj=…, isolate=True)`: images through a child process, and the death of that child."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import bundles
from llcuda_ffi.core.projector import Image, MediaChunk, Sound, TokenChunk
from llcuda_ffi.engine.media import MediaPrompt, MediaSpan
from llcuda_ffi.isolated.media import chunks_back, chunks_out, medium_back, medium_out, prompt_back, prompt_out

from ..support.child_process import run_child
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer

BUNDLE = "v0.6.0-cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model and a projector for it."""
    bundles.ensure(BUNDLE, progress=False)
    place = tmp_path_factory.mktemp("media")
    make_tiny_seer(place / "text.gguf")
    make_tiny_projector(place / "mmproj-text.gguf")
    return place


def test_the_same_answers_and_a_death(folder: Path) -> None:
    """Whole, streamed, awaited, together and again: as in one process; bad images are the same exceptions; a child that
    is killed in an image request is a BackendFailure, and the next call works, with prompts made before too."""
    out = run_child(
        """
import asyncio, os, signal, sys, threading
from pathlib import Path
import numpy as np
from llcuda_ffi import AsyncLlama, Llama
from llcuda_ffi.errors import BackendFailure, InvalidRequest
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
one, two = (rng.integers(0, 255, (40, 56, 3), np.uint8) for _ in range(2))
SET = {"max_tokens": 4, "temperature": 0, "logprobs": 400}
# in floats, without the tiles of flash attention, whose rounding hangs on what is computed together
LLAMA = {
    "bundle": "v0.6.0-cpu", "device": "cpu", "n_ctx": 256, "n_parallel": 4, "mmproj": "auto",
    "kv_type": "f32", "flash_attn": False,
}

def ask(*images, text="what is it?"):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

def first(done):
    entries = done.choices[0].logprobs if hasattr(done, "choices") else done.logprobs
    return np.array([value for _, value in sorted(entries[0].top)])

with Llama(folder / "text.gguf", **LLAMA) as llm:
    want, other = llm.chat(ask(one), **SET), llm.chat(ask(two, one), **SET)
    plain = llm.generate(llm.media_prompt(["the ", one, " shows"]), n=2, **SET)

def killed_while(llm, work):
    '''What `work` raises when the child stops, and is killed then.'''
    found = []
    def run():
        try:
            work()
        except Exception as error:
            found.append(error)
    pid = llm.engine.pid
    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=run)
    thread.start()
    while llm.engine.idle:
        pass
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    [error] = found
    assert type(error) is BackendFailure and "SIGKILL" in str(error), error

llm = Llama(folder / "text.gguf", isolate=True, **LLAMA)
assert llm.media.projector.sees and not llm.media.projector.hears
made = llm.media_prompt(["the ", one, " shows"])
for _ in range(2):
    done = llm.chat(ask(one), **SET)
    assert np.abs(first(done) - first(want)).max() < 1e-5
    assert done.usage.prompt_tokens == want.usage.prompt_tokens > 30
assert done.usage.cached_tokens == done.usage.prompt_tokens - 1, done.usage
assert llm.media.misses == 1
assert "".join(p.content for p in llm.chat_stream(ask(one), **SET)) == want.text
for mine, theirs in zip(llm.generate(made, n=2, echo=True, **SET), plain):
    assert np.abs(first(mine) - first(theirs)).max() < 1e-5
    assert mine.text == theirs.prompt + theirs.text
    assert mine.prompt_token_ids == theirs.prompt_token_ids
together = llm.chat([ask(one), ask(two, one), ask()] * 3, **SET)
assert np.abs(first(together[6]) - first(want)).max() < 1e-5
assert np.abs(first(together[4]) - first(other)).max() < 1e-5
for bad in (b"nothing", "http://127.0.0.1/a.png", np.zeros((4, 0, 3), np.uint8), np.zeros((1, 20000, 3), np.uint8)):
    try:
        llm.chat(ask(bad), **SET)
        print("taken", bad)
    except InvalidRequest:
        pass
try:
    llm.media_prompt([(np.zeros(9999, np.float32), 16000), "a"])
except InvalidRequest as error:
    assert "no sound" in str(error)
assert llm.engine.deaths == 0
killed_while(llm, lambda: llm.chat(ask(rng.integers(0, 255, (40, 56, 3), np.uint8)), **SET))  # while it would encode
assert llm.engine.deaths == 1
assert np.abs(first(llm.generate(made, **SET)) - first(plain[0])).max() < 1e-5
killed_while(llm, lambda: llm.generate(made, **SET))  # while it would generate
assert np.abs(first(llm.chat(ask(two, one), **SET)) - first(other)).max() < 1e-5
llm.close()

async def main():
    async with AsyncLlama(folder / "text.gguf", isolate=True, **LLAMA) as llm:
        done = await asyncio.gather(*(llm.chat(ask(one), **SET) for _ in range(4)))
        assert all(np.abs(first(each) - first(want)).max() < 1e-5 for each in done)
asyncio.run(main())
print("seen")
""",
        folder,
        timeout=200,
    )
    assert out.strip() == "seen"


def test_arrays_on_their_way() -> None:
    """Media, chunks and prompts come back as they were; what is none of them is a ValueError or TypeError."""

    def sent(pair: tuple[object, bytes]) -> tuple[object, bytes]:
        return json.loads(json.dumps(pair[0])), pair[1]

    rng = np.random.default_rng(0)
    pixels, samples = rng.integers(0, 255, (3, 5, 3), np.uint8), rng.random(7, np.float32)
    image, sound = medium_back(*sent(medium_out(Image(pixels)))), medium_back(*sent(medium_out(Sound(samples))))
    assert isinstance(image, Image)
    assert isinstance(sound, Sound)
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(sound.samples, samples)
    rows, places = rng.random((4, 6), np.float32), rng.integers(0, 9, (4, 4), np.int32)
    tokens = np.array([1, 2], np.int32)
    chunks = [TokenChunk(tokens), MediaChunk((0, 0), rows, places, 2, False), MediaChunk((0, 1), rows, None, 4, True)]
    described, raw = sent(chunks_out(chunks))
    back = chunks_back(described, raw)
    for mine, theirs in zip(back, chunks, strict=True):
        assert repr(mine) == repr(theirs)
    for value, blob in (
        (described, raw[:-1]),
        (described, raw + b"a"),
        (None, raw),
        ([[None], [["<f4", [1, 1]]]], bytes(4)),
        ([[[0, 0, 1, True, False]], [["<i4", [1, 1]]]], bytes(4)),
        ([[[0, 0, 2, True, False]], [["<f4", [1, 1]]]], bytes(4)),
        ([[[0, 0, 1, True, True]], [["<f4", [1, 1]]]], bytes(4)),
        ([[None], [["<i4", [1 << 62, 1 << 62]]]], b""),
        ([[None], [["O", [1]]]], bytes(8)),
        ([[None], [["<i4", [-1]]]], b""),
    ):
        with pytest.raises((ValueError, TypeError)):
            chunks_back(value, blob)
    prompt = MediaPrompt(
        np.array([5, -9, -8, -7, -6, 3], np.int32), (MediaSpan(1, rows, places, 2, False),), "a<image>b"
    )
    again = prompt_back(prompt.tokens.tolist(), *sent(prompt_out(prompt)))
    assert repr(again) == repr(prompt)
