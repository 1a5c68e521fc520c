"""Prompts with images on tiny models, in child processes with the bundle that has libmtmd."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda_ffi import bundles, lora
from llcuda_ffi.errors import InvalidRequest, UnsupportedByBundle

from ..lora.test_lora import peft_folder
from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer

BUNDLE = "v0.6.0-cpu"
START = """
import base64, io, sys
from concurrent.futures import ThreadPoolExecutor
from PIL import Image as Pillow
from pathlib import Path
import numpy as np
from llcuda_ffi import Llama
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
one, two = (rng.integers(0, 255, (40, 56, 3), np.uint8) for _ in range(2))

def ask(*images, text="what is it?"):
    parts = [{"type": "text", "text": "look:"}]
    parts += [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

def first(done):
    entries = done.choices[0].logprobs if hasattr(done, "choices") else done.logprobs
    return np.array([value for _, value in sorted(entries[0].top)])

SET = {"max_tokens": 4, "temperature": 0, "logprobs": 400}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model and projectors for it."""
    bundles.ensure(BUNDLE, progress=False)
    place = tmp_path_factory.mktemp("media")
    make_tiny_seer(place / "text.gguf")
    for kind in ("idefics3", "gemma3"):
        make_tiny_projector(place / f"{kind}.gguf", kind)
    return place


def child(folder: Path, code: str) -> str:
    return run_child(START + code, folder, timeout=200)


def test_embeddings_are_computed_as_tokens_are(folder: Path) -> None:
    """A prompt in which some tokens are given as their own embeddings gives the logits of the tokens: positions, parts
    of one micro-batch, other requests beside it, and what is kept of it for the next one."""
    out = child(
        folder,
        """
from llcuda_ffi.engine.media import MediaPrompt, MediaSpan, placeholders
from llcuda_ffi.gguf import GGUFReader

with GGUFReader(folder / "text.gguf") as reader:
    table = np.array(reader.get_tensor_data("token_embd.weight"), np.float32)
ids = rng.integers(0, 300, 150).astype(np.int32)

def seen(start, stop, whole=False):
    tokens = ids.copy()
    tokens[start:stop] = placeholders(ids[start:stop].tobytes(), stop - start)
    return MediaPrompt(tokens, (MediaSpan(start, table[ids[start:stop]], None, stop - start, whole),))

with Llama(folder / "text.gguf", bundle="v0.6.0-cpu", n_ctx=256, n_parallel=4, n_ubatch=32) as llm:
    want = first(llm.generate(ids, **SET))
    for prompt in (seen(0, 100), seen(40, 149), seen(10, 12), seen(40, 149)):
        done = llm.generate(prompt, **SET)
        assert np.abs(first(done) - want).max() < 1e-4, np.abs(first(done) - want).max()
    assert done.usage.cached_tokens > 100, done.usage
    prompts = [seen(0, 100), ids, seen(40, 149), ids[:20]]
    for done in llm.generate(prompts, **SET)[:3]:
        assert np.abs(first(done) - want).max() < 1e-4
    cut = llm.generate(ids[:60], **SET)
    both = llm.generate([seen(50, 60) , ids], **SET)  # continues what is kept only where it is the same
    assert np.abs(first(both[0]) - want).max() < 1e-4
print("equal")
""",
    )
    assert out.strip() == "equal"


@pytest.mark.parametrize("kind", ["idefics3", "gemma3"])
def test_conversations_with_images(folder: Path, kind: str) -> None:
    """Whole, streamed, in company and again: the same answer; another image another one; an image is encoded once."""
    out = child(
        folder,
        f"""
with Llama(folder / "text.gguf", bundle="v0.6.0-cpu", mmproj=folder / "{kind}.gguf", n_ctx=256, n_parallel=4) as llm:
    a, b = llm.chat(ask(one), **SET), llm.chat(ask(two), **SET)
    assert a.usage.prompt_tokens > 30
    assert np.abs(first(a) - first(b)).max() > 1e-3, "the image changes nothing"
    again = llm.chat(ask(one), **SET)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1, again.usage
    assert np.abs(first(again) - first(a)).max() < 1e-3
    together = llm.chat([ask(one), ask(two), ask(one, two), ask()] * 2, **SET)
    for done, want in zip(together, [a, b, None, None] * 2):
        if want is not None:
            assert np.abs(first(done) - first(want)).max() < 1e-3
    assert llm.media.misses == 2, llm.media.misses
    pieces = list(llm.chat_stream(ask(one), **SET))
    assert "".join(p.content for p in pieces) == a.text
    swapped, other = llm.chat(ask(two, one), **SET), together[2]
    assert np.abs(first(swapped) - first(other)).max() > 1e-4, "the order changes nothing"
    png = io.BytesIO()
    Pillow.fromarray(one).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    for part in (
        {{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{data}}", "detail": "low"}}}},
        {{"type": "image", "base64": data}},
        {{"type": "image", "image": None, "url": f"data:;base64,{{data}}"}},
        {{"type": "image", "image": {{"bytes": png.getvalue(), "path": None}}}},
        {{"type": "image", "source": {{"type": "base64", "media_type": "image/png", "data": data}}}},
    ):
        messages = ask(one)
        messages[0]["content"][1] = part
        assert llm.chat(messages, **SET).usage.cached_tokens == a.usage.prompt_tokens - 1, part
    for again in (png.getvalue(), Path(folder / "one.png"), f"data:image/png;base64,{{data}}"):
        if isinstance(again, Path):
            again.write_bytes(png.getvalue())
        llm.media.encode(llm.media.read("image", again))
        known = llm.media.read("image", again)
        assert known.content is None and known.chunks, "it is decoded again"
    assert llm.media.read("image", two).content is not None
    assert llm.media.misses == 2, llm.media.misses
    llm.save_state(folder / "{kind}.state")  # of the texts only
    llm.load_state(folder / "{kind}.state")
    assert np.abs(first(llm.chat(ask(one), **SET)) - first(a)).max() < 1e-3
    new = rng.integers(0, 255, (90, 70, 3), np.uint8)
    with ThreadPoolExecutor(4) as threads:  # the same new image at once: encoded once
        list(threads.map(lambda _: llm.media_prompt([new, "a"]), range(4)))
    assert llm.media.misses == 3, llm.media.misses
    done = llm.generate(llm.media_prompt(["the ", one, " shows"]), n=3, **SET)
    assert np.abs(first(done[0]) - first(done[2])).max() < 1e-3
    assert llm.metrics().running == 0
print("seen")
""",
    )
    assert out.strip() == "seen"


def test_second_turn(folder: Path) -> None:
    """Nothing of the first turn is computed again, though the model wrote other tokens than the tokenizer would; no
    line is begun beside an image, as in llama-server; another image shares nothing of it."""
    out = child(
        folder,
        """
with Llama(folder / "text.gguf", bundle="v0.6.0-cpu", mmproj=folder / "idefics3.gguf", n_ctx=512, n_parallel=2) as llm:
    SET = {"max_tokens": 24, "temperature": 3, "seed": 3, "grammar": "root ::= [the ]+"}
    for image in (one, two):
        messages = ask(image)
        first = llm.chat(messages, **SET)
        assert first.usage.cached_tokens < 20, first.usage
        assert "user\\nlook:<image>what is it?<|im_end|>" in first.prompt, first.prompt
        n = first.usage.completion_tokens
        assert len(llm.vocab.tokenize(first.text, add_special=False)) != n, (n, first.text)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and now?"}]
        second = llm.chat(messages, **SET)
        assert second.usage.cached_tokens == first.usage.prompt_tokens + n - 1, (first.usage, second.usage)
print("kept")
""",
    )
    assert out.strip() == "kept"


def test_adapters_and_a_quantized_cache(folder: Path) -> None:
    """An image's prompt is computed with the request's adapter, beside one without it, and nothing is reused from one
    to the other; a KV cache of 8 bits gives nearly the same, also for a second question."""
    lora.convert(peft_folder(folder / "peft"), folder / "text.gguf", folder / "adapter.gguf")
    lora.merge(folder / "text.gguf", folder / "peft", folder / "merged.gguf")
    make_tiny_seer(folder / "one_head.gguf", heads=1, heads_kv=1)  # of 32 numbers, a block of Q8_0
    out = child(
        folder,
        """
from llcuda_ffi import lora
SEEING = {"bundle": "v0.6.0-cpu", "mmproj": folder / "idefics3.gguf", "n_ctx": 256, "n_parallel": 4}
messages = ask(one)
with Llama(folder / "merged.gguf", **SEEING) as llm:
    merged = first(llm.chat(messages, **SET))
with Llama(folder / "text.gguf", **SEEING) as llm:
    plain = first(llm.chat(messages, **SET))
    adapter = lora.load(llm, folder / "adapter.gguf")
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            other = threads.submit(llm.chat, messages, **SET)
            done = llm.chat(messages, lora=adapter, **SET)
        assert np.abs(first(done) - merged).max() < 1e-3
        assert np.abs(first(other.result()) - plain).max() < 1e-3
    assert done.usage.cached_tokens == done.usage.prompt_tokens - 1, done.usage
    assert llm.media.misses == 1
assert np.abs(merged - plain).max() > 0.05, "the adapter changes nothing"
with Llama(folder / "one_head.gguf", **SEEING) as llm:
    plain = first(llm.chat(messages, **SET))
with Llama(folder / "one_head.gguf", kv_type="q8_0", flash_attn=True, **SEEING) as llm:
    a, b, c = (llm.chat(one, **SET) for one in (messages, messages, ask(one, text="and what is it?")))
    assert np.abs(first(a) - plain).max() < 0.1, np.abs(first(a) - plain).max()
    assert np.abs(first(b) - first(a)).max() < 0.05, np.abs(first(b) - first(a)).max()
    assert b.usage.cached_tokens == b.usage.prompt_tokens - 1 and c.usage.cached_tokens > 20
print("adapted")
""",
    )
    assert out.strip() == "adapted"


def test_what_is_refused(folder: Path) -> None:
    """Each with one exception of ours; the Llama answers afterwards."""
    out = child(
        folder,
        """
from llcuda_ffi.errors import InvalidRequest, LlcudaError
calls = [
    lambda llm: llm.chat(ask("http://127.0.0.1/a.png")),
    lambda llm: llm.chat(ask(b"nothing")),
    lambda llm: llm.chat(ask(np.zeros((50_000, 50_000, 3), np.uint8)[:, :, :0])),
    lambda llm: llm.chat([{"role": "user", "content": [{"type": "image_url"}]}]),
    lambda llm: llm.chat([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]),
    lambda llm: llm.chat([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]),
    lambda llm: llm.generate(llm.media_prompt([one, "a"]), overflow="shift"),
    lambda llm: llm.chat(ask(one), template="{{ messages[0]['role'] }}"),
    lambda llm: llm.chat(ask(*[one] * 40)),
    lambda llm: llm.generate(llm.media_prompt([one, "a"]), prompt_logprobs=1),
    lambda llm: llm.media_prompt(5),
    lambda llm: llm.media_prompt(["a", one]),
    lambda llm: llm.chat([{"role": "user", "content": [{"type": "image", "image": io.StringIO("a")}]}]),
]
with Llama(folder / "text.gguf", bundle="v0.6.0-cpu", mmproj=folder / "idefics3.gguf", n_ctx=256, n_parallel=2) as llm:
    want = llm.chat(ask(one), **SET)
    for i, call in enumerate(calls):
        try:
            call(llm)
        except LlcudaError as error:
            print(i, type(error).__name__, str(error)[:90])
    assert np.abs(first(llm.chat(ask(one), **SET)) - first(want)).max() < 1e-3
with Llama(folder / "text.gguf", bundle="v0.6.0-cpu", n_ctx=256, n_parallel=1) as llm:
    try:
        llm.chat(ask(one))
    except InvalidRequest as error:
        assert "mmproj" in str(error)
        print("text only")
""",
    )
    assert [line.split()[0] for line in out.splitlines()] == [*map(str, range(13)), "text"], out


def test_hostile_projectors(folder: Path, tmp_path: Path) -> None:
    """Files that end libmtmd's process, or are no projectors, are exceptions here."""
    whole = (folder / "idefics3.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.gguf").write_bytes(b"")
    make_tiny_projector(tmp_path / "heads.gguf", heads=5)
    make_tiny_projector(tmp_path / "patch.gguf", image_size=4)
    make_tiny_projector(tmp_path / "width.gguf", text_embd=64)
    make_tiny_projector(tmp_path / "unknown.gguf", **{"clip.projector_type": "nonsense"})
    make_tiny_projector(tmp_path / "voxtral.gguf", **{"clip.projector_type": "voxtral"})
    make_tiny_projector(tmp_path / "std.gguf", **{"clip.vision.image_std": [0.0, 0.0, 0.0]})
    make_tiny_llama(tmp_path / "text.gguf")
    out = child(
        folder,
        f"""
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.projector import Image, Projector
from llcuda_ffi.bundles import ensure
from llcuda_ffi.errors import LlcudaError
model = Model.load(folder / "text.gguf", bundle=ensure("v0.6.0-cpu"))
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        with Projector(model, path) as projector:
            projector.encode([Image(one)])
        print(path.name, "loaded")
    except LlcudaError as error:
        print(path.name, type(error).__name__)
""",
    )
    found = dict(line.split() for line in out.splitlines())
    assert found["heads.gguf"] == "InvalidModelFile", found
    assert found["voxtral.gguf"] == "UnsupportedModel"
    assert found["std.gguf"] == "BackendFailure", found
    assert found["text.gguf"] == "InvalidModelFile"
    assert "loaded" not in found.values(), found
    assert len(found) == 9


@pytest.mark.bundle("v0.5.0")
def test_a_bundle_without_libmtmd(folder: Path) -> None:
    """It says who has it, and the command that brings it."""
    from llcuda_ffi import Llama

    with pytest.raises(UnsupportedByBundle, match=r"bundle install v0\.6\.0-cpu"):
        Llama(folder / "text.gguf", mmproj=folder / "gemma3.gguf", n_parallel=1, n_ctx=64)
    with Llama(folder / "text.gguf", n_parallel=1, n_ctx=64) as llm, pytest.raises(InvalidRequest, match="projector"):
        llm.media_prompt(["a"])
