"""Requests with an image: against libmtmd's own calls, 16 together against one by one, a second turn, and what streams
of text notice of images.

python bench/images.py [-r 5] [--only one turn photo new known beside] [--edge 512]
    [--ubatch 512] [--json bench/results/images.json]

The models are random: a llama of 12 layers (512 wide) and an encoder of the shape of SmolVLM's, small beside it as real
ones are beside real models: an image of 512 × 512 is four tiles and the whole, 320 embeddings (--edge 1024: 1,088, as
SmolVLM makes of a photo). What is computed takes the time that it takes for trained weights. The raw side is the same C
calls through cffi: mtmd_tokenize_from_parts, mtmd_encode_chunk, llama_decode of the embeddings and the tokens,
llama_sampler_sample.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import report
from PIL import Image
from raw import RawLoop

from llcuda_ffi import Llama
from llcuda_ffi.core.projector import Projector
from llcuda_ffi.sampling_params import SamplingParams
from tests.support.tiny_model import Typed
from tests.support.tiny_projector import make_tiny_projector, make_tiny_seer

BEFORE, AFTER = "the quick brown fox saw ", " and said that "
PARTS = ("one", "turn", "photo", "new", "known", "beside")


class RawSeer(RawLoop):
    """One image request, by C calls alone."""

    def __init__(self, projector: Projector, **settings: int) -> None:
        super().__init__(projector.model, **settings)
        self.projector = projector
        with projector.shared():
            self.seer = projector.pointer
        self.mtmd = projector.functions
        self.width = int(self.lib.llama_model_n_embd_inp(self.model.pointer))

    def see(self, pixels: np.ndarray, n_tokens: int, params: SamplingParams) -> list[int]:
        """The tokens that follow BEFORE, the image and AFTER."""
        ffi, lib, mtmd = self.ffi, self.lib, self.mtmd
        lib.llama_memory_clear(self.memory, False)
        bitmap = mtmd.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], ffi.from_buffer("unsigned char[]", pixels))
        keep, parts = [], []
        for text in (BEFORE, None, AFTER):
            part = ffi.new("struct mtmd_input_part *")
            if text is None:
                part.bitmap = bitmap
            else:
                raw = ffi.new("char[]", text.encode())
                one = ffi.new("struct mtmd_input_text *", {"text": raw, "text_len": len(text), "parse_special": True})
                part.text = one
                keep += [raw, one]
            parts.append(part)
        chunks = mtmd.mtmd_input_chunks_init()
        array = ffi.new("struct mtmd_input_part *[]", parts)
        assert mtmd.mtmd_tokenize_from_parts(self.seer, chunks, array, len(parts), True) == 0
        n_past, count = 0, int(mtmd.mtmd_input_chunks_size(chunks))
        for i in range(count):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            n = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
            batch = self.batch
            batch.n_tokens = n
            for k in range(n):
                batch.pos[k], batch.n_seq_id[k], batch.seq_id[k][0] = n_past + k, 1, 0
                batch.logits[k] = i == count - 1 and k == n - 1
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                found = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ffi.new("size_t *"))
                ffi.memmove(batch.token, found, 4 * n)
                assert lib.llama_decode(self.context, batch) == 0
            else:
                assert mtmd.mtmd_encode_chunk(self.seer, chunk) == 0
                seen = ffi.new("struct llama_batch *", batch)
                seen.token, seen.embd = ffi.NULL, mtmd.mtmd_get_output_embd(self.seer)
                assert lib.llama_decode(self.context, seen[0]) == 0
            n_past += n
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        chain, out = self.chain(params, 1), []
        batch = self.batch
        for step in range(n_tokens):
            out.append(lib.llama_sampler_sample(chain, self.context, -1))
            if step == n_tokens - 1:
                break
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, out[-1], n_past + step
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, True
            assert lib.llama_decode(self.context, batch) == 0
        lib.llama_sampler_free(chain)
        return out


def pictures(n: int, edge: int = 512) -> list[np.ndarray]:
    """New images each time, so that none is known."""
    rng = np.random.default_rng()
    return [rng.integers(0, 255, (edge, edge, 3), np.uint8) for _ in range(n)]


def photo() -> bytes:
    """A new JPEG file of 2,048 × 1,536 pixels."""
    out = io.BytesIO()
    small = np.random.default_rng().integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(small).resize((2048, 1536), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def one(llm: Llama, raw: RawSeer, tokens: int, edge: int) -> tuple[float, float, bool]:
    """Seconds of a request here and in the raw loop, and whether both chose the same tokens."""
    pixels = pictures(1, edge)[0]
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, prefix_cache=False)
    began = perf_counter()
    done = llm.generate(llm.media_prompt([BEFORE, pixels, AFTER]), params)
    ours = perf_counter() - began
    began = perf_counter()
    out = raw.see(pixels, tokens, params)
    return ours, perf_counter() - began, out == list(done.token_ids)


def together(llm: Llama, tokens: int, edge: int, *, seen: bool) -> tuple[float, float]:
    """Seconds of 16 requests with 16 images one by one, and together; `seen`: the images were encoded before."""
    times = []
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, prefix_cache=False)
    for at_once in (False, True):
        images = pictures(16, edge)
        if seen:
            for image in images:
                llm.media_prompt([image, AFTER])
        began = perf_counter()
        if at_once:
            llm.generate([llm.media_prompt([BEFORE, image, AFTER]) for image in images], params)
        else:
            for image in images:
                llm.generate(llm.media_prompt([BEFORE, image, AFTER]), params)
        times.append(perf_counter() - began)
    return times[0], times[1]


def turns(llm: Llama, image: np.ndarray | bytes) -> tuple[float, float]:
    """Seconds to the first token of a conversation about a new image, and of its second turn."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    times = []
    for _ in range(2):
        began = perf_counter()
        chunks = llm.chat_stream(messages, max_tokens=8, temperature=0, ignore_eos=True)
        first = next(chunk for chunk in chunks)
        times.append(perf_counter() - began)
        text = first.content + "".join(chunk.content for chunk in chunks)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and what else?"}]
    return times[0], times[1]


def beside(llm: Llama, edge: int, streams: int = 4, images: int = 6) -> dict[str, float]:
    """Streams of text while prompts with (encoded) images come one after the other: the streams' rate and gaps, and the
    seconds to the first token of an image's answer; the rate without images for comparison."""
    params = SamplingParams(temperature=0, ignore_eos=True, prefix_cache=False)
    prompts = [llm.media_prompt([BEFORE, image, AFTER]) for image in pictures(images, edge)]

    def during(work: Callable[[], None]) -> list[float]:
        """The gaps of the streams' tokens while `work` is done."""
        gaps: list[float] = []
        over, begun = threading.Event(), threading.Barrier(streams + 1)

        def read(i: int) -> None:
            chunks = llm.stream(f"{BEFORE}{i}", params, max_tokens=llm.n_ctx - 64)
            next(chunks)
            begun.wait()
            last = perf_counter()
            for _ in chunks:
                now = perf_counter()
                gaps.append(now - last)
                last = now
                if over.is_set():
                    break

        threads = [threading.Thread(target=read, args=(i,)) for i in range(streams)]
        for thread in threads:
            thread.start()
        begun.wait()
        work()
        over.set()
        for thread in threads:
            thread.join()
        return gaps

    firsts: list[float] = []

    def see() -> None:
        for prompt in prompts:
            began = perf_counter()
            llm.generate(prompt, params, max_tokens=1)
            firsts.append(perf_counter() - began)

    quiet = during(lambda: sleep(0.5))
    busy = during(see)
    rate, base = (streams / float(np.mean(gaps)) for gaps in (busy, quiet))
    return {
        "rate": rate, "of_quiet": rate / base, "p50": float(np.median(busy)),
        "p99": float(np.quantile(busy, 0.99)), "first": float(np.median(firsts)),
    }  # fmt: skip


def main() -> None:
    p = report.parser(__doc__, rounds=5)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--edge", type=int, default=512, help="pixels of an image's side, a multiple of 256")
    p.add_argument("--ubatch", type=int, default=512, help="tokens computed at once (default 512)")
    p.add_argument("--bundle", default="v0.6.0-cpu")
    p.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_tiny_seer(folder / "text.gguf", embd=512, layers=12, heads=8, heads_kv=4, ff=1024)
        make_tiny_projector(
            folder / "mmproj-text.gguf", text_embd=512, image_size=256, patch_size=16, embd=192, heads=3, layers=4,
            ff=768, scale=2, **{"clip.vision.preproc_image_size": Typed("u32", a.edge)},
        )  # fmt: skip
        n_ctx = 320 + 64 * (1 + (a.edge // 256) ** 2)
        with Llama(
            folder / "text.gguf", mmproj="auto", bundle=a.bundle, n_ctx=n_ctx, n_parallel=16, n_threads=a.threads,
            n_ubatch=a.ubatch, host_cache_bytes=0,
        ) as llm:  # fmt: skip
            assert llm.media is not None
            settings = {"tokens": a.tokens, "threads": a.threads, "edge": a.edge, "ubatch": a.ubatch}
            out = report.header("images", llm.model.library, settings)
            raw = RawSeer(llm.media.projector, n_ctx=n_ctx, n_parallel=1, n_threads=a.threads)
            one(llm, raw, 4, a.edge)
            turns(llm, pictures(1, a.edge)[0])
            if "one" in a.only:
                runs = [one(llm, raw, a.tokens, a.edge) for _ in range(a.rounds)]
                ours, theirs = [r[0] for r in runs], [r[1] for r in runs]
                out["one"] = report.line("one request, llcuda_ffi", ours, "s", 3)
                out["raw"] = report.line("one request, libmtmd's calls", theirs, "s", 3)
                out["of_raw"] = report.line("  speed of the raw loop", report.ratios(theirs, ours), "", 3)
                print(f"  the same tokens: {sum(r[2] for r in runs)} of {len(runs)}")
            for name, make in (("turn", lambda: pictures(1, a.edge)[0]), ("photo", photo)):
                if name not in a.only:
                    continue
                pairs = [turns(llm, make()) for _ in range(a.rounds)]
                out[f"{name}_first"] = report.line(f"first token of the first {name}", [p[0] for p in pairs], "s", 4)
                out[f"{name}_second"] = report.line("  of the second", [p[1] for p in pairs], "s", 4)
                out[f"{name}_ratio"] = report.line("  second / first", [y / x for x, y in pairs], "", 3)
            for name in ("new", "known"):
                if name in a.only:
                    pairs = [
                        together(llm, a.tokens, a.edge, seen=name == "known") for _ in range(max(1, a.rounds // 2))
                    ]
                    out[f"sixteen_{name}"] = report.line(
                        f"16 requests, {name} images: one by one / together", [x / y for x, y in pairs], "", 2
                    )
            if "beside" in a.only:
                found = [beside(llm, a.edge) for _ in range(max(1, a.rounds // 2))]
                for name, unit, digits in (
                    ("rate", "tokens/s", 0), ("of_quiet", "", 3), ("p50", "s", 4), ("p99", "s", 4), ("first", "s", 3),
                ):  # fmt: skip
                    out[f"beside_{name}"] = report.line(
                        f"beside images: {name}", [f[name] for f in found], unit, digits
                    )
    report.write(out, a.json)


if __name__ == "__main__":
    main()
