"""Every feature at once, for minutes, against answers known before; run by hand.

Threads and asyncio tasks draw operations at random: generate, streams read to the end or left, chat, forced tool calls,
JSON schemas, log probabilities, n completions, images, embeddings, reranking, adapters per request, saved and loaded
state, time-outs, cancels, bad input, models loaded and closed, an engine in a process of its own. Every answer must be
the one of the same operation alone. The models are tiny and made here. At the end (and every --every seconds) memory,
file descriptors, threads and the tokens that the KV caches hold are looked at; stderr must stay silent.

    python bench/soak_mixed.py [--minutes 20] [--bundle v0.6.0-cpu] [--json bench/results/soak_mixed.json]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import report
from soak import rss_mib

from llcuda_ffi import AsyncLlama, Embedder, Llama, Reranker, SamplingParams, bundles, lora
from llcuda_ffi.conversion.bert import convert_bert
from llcuda_ffi.errors import LlcudaError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.lora.test_lora import peft_folder
from tests.support.tiny_bert import WORDS as BERT_WORDS
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tiny_model import make_tiny_bert, make_tiny_llama
from tests.support.tiny_projector import make_tiny_projector, make_tiny_seer

WORDS = ["a story of", "the sea", "one two three", "old stone and", "we went to the", "light", "why is it that", "snow"]
PROMPTS = [f"{a} {b}" for a in WORDS for b in WORDS[:4]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}
Operation = Callable[[random.Random], tuple[str, Any]]


class Work:
    """The operations, each of which gives a key and a result; the results of a quiet run are what must come again."""

    def __init__(self, folder: Path, bundle: str) -> None:
        make_tiny_llama(folder / "text.gguf")
        make_tiny_seer(folder / "seer.gguf")
        make_tiny_projector(folder / "eye.gguf", "idefics3")
        make_tiny_bert(folder / "bert.gguf")
        library = bundles.ensure(bundle)
        self.folder, self.library = folder, library
        self.llm = Llama(folder / "text.gguf", n_ctx=512, n_parallel=8, n_threads=1, bundle=library)
        self.seer = Llama(
            folder / "seer.gguf", mmproj=folder / "eye.gguf", n_ctx=256, n_parallel=4, n_threads=1, bundle=library
        )
        self.apart = Llama(
            folder / "text.gguf", n_ctx=512, n_parallel=4, n_threads=1, bundle=library, isolate=True, trial=False
        )
        self.embedder = Embedder(folder / "bert.gguf", n_contexts=1, n_threads=1, bundle=library)
        judge = convert_bert(write_tiny_bert(folder / "judge", head=True), folder / "judge.gguf", "f32")
        self.reranker = Reranker(judge, n_contexts=1, n_threads=1, bundle=library)
        self.adapter = lora.load(
            self.llm, lora.convert(peft_folder(folder / "peft"), folder / "text.gguf", folder / "a.gguf")
        )
        self.image = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        self.operations: list[Operation] = [
            self.generate, self.generate, self.stream, self.leave, self.chat, self.tools, self.schema, self.logprobs,
            self.several, self.picture, self.embed, self.adapted, self.state, self.late, self.bad, self.reload,
            self.isolated, self.rerank,
        ]  # fmt: skip

    def generate(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        return f"generate {prompt}", self.llm.generate(prompt, GREEDY).token_ids

    def isolated(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        return f"generate {prompt}", self.apart.generate(prompt, GREEDY).token_ids

    def stream(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        chunks = list(self.llm.stream(prompt, GREEDY))
        last = chunks[-1].completion
        assert last is not None
        assert "".join(chunk.text for chunk in chunks) == last.text
        assert [token for chunk in chunks for token in chunk.token_ids] == last.token_ids
        return f"generate {prompt}", last.token_ids

    def leave(self, dice: random.Random) -> tuple[str, Any]:
        stream = self.llm.stream(dice.choice(PROMPTS), GREEDY, max_tokens=100)
        for _, _ in zip(stream, range(dice.randrange(4)), strict=False):
            pass
        stream.close()
        return "left", True

    def chat(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        return f"chat {prompt}", self.llm.chat([{"role": "user", "content": prompt}], GREEDY).text

    def tools(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS[:8])
        done = self.llm.chat(
            [{"role": "user", "content": prompt}], tools=[TOOL], tool_choice="find", temperature=0, max_tokens=60
        )
        return f"tools {prompt}", [(call.name, call.arguments) for call in done.tool_calls]

    def schema(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        done = self.llm.generate(prompt, temperature=0, max_tokens=40, json_schema=SCHEMA)
        return f"schema {prompt}", done.text

    def logprobs(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        done = self.llm.generate(prompt, GREEDY, logprobs=2)
        assert done.logprobs is not None
        assert [entry.token for entry in done.logprobs] == done.token_ids
        return f"generate {prompt}", done.token_ids

    def several(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        found = self.llm.generate(prompt, GREEDY, n=3)
        assert [one.token_ids for one in found] == [found[0].token_ids] * 3
        return f"generate {prompt}", found[0].token_ids

    def picture(self, dice: random.Random) -> tuple[str, Any]:
        words = dice.choice(WORDS)
        done = self.seer.generate(self.seer.media_prompt([words, self.image, " is"]), GREEDY)
        return f"picture {words}", done.token_ids

    def embed(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        return f"embed {prompt}", self.embedder.encode(prompt)

    def rerank(self, dice: random.Random) -> tuple[str, Any]:
        query = dice.choice(BERT_WORDS)
        ranked = self.reranker.rank(query, BERT_WORDS[: dice.randrange(1, 9)])
        assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
        return f"rerank {query} {len(ranked)}", np.array([one.score for one in sorted(ranked, key=lambda r: r.index)])

    def adapted(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        return f"adapted {prompt}", self.llm.generate(prompt, GREEDY, lora=self.adapter).token_ids

    def state(self, dice: random.Random) -> tuple[str, Any]:
        if dice.random() < 0.5:
            self.llm.load_state(self.llm.save_state())
        elif dice.random() < 0.3:
            self.llm.clear_cache()
        return "state", True

    def late(self, dice: random.Random) -> tuple[str, Any]:
        done = self.llm.generate(dice.choice(PROMPTS), GREEDY, max_tokens=200, timeout=dice.random() * 0.02)
        return "late", done.finish_reason in ("cancelled", "length")

    def bad(self, dice: random.Random) -> tuple[str, Any]:
        wrong: list[dict[str, Any]] = [
            {"temperature": -1}, {"max_tokens": 10_000}, {"json_schema": {"type": "nonsense"}}, {"grammar": "root ="},
            {"logit_bias": {1 << 30: 1.0}}, {"n": 0},
        ]  # fmt: skip
        try:
            self.llm.generate(dice.choice(PROMPTS), **dice.choice(wrong))
        except LlcudaError:
            return "bad", True
        return "bad", False

    def reload(self, dice: random.Random) -> tuple[str, Any]:
        prompt = dice.choice(PROMPTS)
        with Llama(self.folder / "text.gguf", n_ctx=64, n_parallel=1, n_threads=1, bundle=self.library) as other:
            return f"generate {prompt}", other.generate(prompt, GREEDY).token_ids

    def close(self) -> None:
        """Free it all."""
        self.adapter.close()
        for one in (self.llm, self.seer, self.apart, self.embedder, self.reranker):
            one.close()


def same(a: Any, b: Any) -> bool:
    """Whether two results are one; numbers may differ by what the order of additions does to them."""
    if isinstance(a, np.ndarray):
        return bool(np.allclose(a, b, rtol=0, atol=1e-3))
    return bool(a == b)


class Tally:
    """What became of the operations."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def run(self, operation: Operation, dice: random.Random) -> None:
        """One operation; what it raises is wrong too."""
        name = operation.__name__
        try:
            key, result = operation(dice)
        except Exception:
            with self.lock:
                self.wrong.append(f"{name}: {traceback.format_exc()[-1500:]}")
            return
        with self.lock:
            self.counts[name] += 1
            if not same(self.known.setdefault(key, result), result):
                self.wrong.append(f"{key}: {result} instead of {self.known[key]}")


def usage(llm: Llama) -> dict[str, float]:
    """What must not grow."""
    fds = len(list(Path("/proc/self/fd").iterdir()))
    kv_used = llm.metrics().kv_used
    return {"rss_mib": round(rss_mib(), 1), "fds": fds, "threads": threading.active_count(), "kv_used": kv_used}


async def tasks(folder: Path, library: Any, tally: Tally, until: float) -> None:
    """An AsyncLlama of its own, some of whose requests are cancelled."""
    llm = await AsyncLlama.load(folder / "text.gguf", n_ctx=256, n_parallel=8, n_threads=1, bundle=library)
    async with llm:

        async def work(seed: int) -> None:
            dice = random.Random(seed)
            while perf_counter() < until:
                prompt = dice.choice(PROMPTS)
                task = asyncio.ensure_future(llm.generate(prompt, GREEDY))
                if dice.random() < 0.2:
                    await asyncio.sleep(dice.random() * 0.02)
                    task.cancel()
                try:
                    tokens = (await task).token_ids
                except asyncio.CancelledError:
                    continue
                except Exception:
                    tally.wrong.append(f"async: {traceback.format_exc()[-1500:]}")
                    return
                with tally.lock:
                    tally.counts["async"] += 1
                    if tally.known.setdefault(f"generate {prompt}", tokens) != tokens:
                        tally.wrong.append(f"async {prompt}: {tokens}")

        await asyncio.gather(*(work(i) for i in range(6)))


@contextmanager
def redirected(file: int) -> Iterator[None]:
    """What is written to stderr goes to a file meanwhile."""
    terminal = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=20.0)
    p.add_argument("--workers", type=int, default=6, help="threads")
    p.add_argument("--every", type=float, default=30.0, help="seconds between two looks at what must not grow")
    p.add_argument("--bundle", default="v0.6.0-cpu", help="one with libmtmd")
    p.add_argument("--json", type=Path, metavar="FILE")
    a = p.parse_args()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder, redirected(said.fileno()):
        work, tally = Work(Path(folder), a.bundle), Tally()
        out = report.header("soak_mixed", work.llm.model.library, {"minutes": a.minutes, "workers": a.workers})
        dice = random.Random(0)
        for operation in work.operations * 40:  # alone: the answers
            tally.run(operation, dice)
        tally.counts.clear()
        until = perf_counter() + 60 * a.minutes

        def serve(seed: int) -> None:
            dice = random.Random(seed)
            while perf_counter() < until and len(tally.wrong) < 20:
                tally.run(dice.choice(work.operations), dice)

        threads = [threading.Thread(target=serve, args=(i,)) for i in range(a.workers)]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks(work.folder, work.library, tally, until))))
        for thread in threads:
            thread.start()
        out["usage"] = []
        for thread in threads:
            while thread.is_alive():
                thread.join(a.every)
                out["usage"].append({"operations": sum(tally.counts.values()), **usage(work.llm)})
                print(f"  {out['usage'][-1]}, wrong {len(tally.wrong)}", flush=True)
        work.llm.clear_cache()
        metrics = work.llm.metrics()
        work.close()
        said.seek(0)
        out |= {"counts": dict(tally.counts), "wrong": tally.wrong}
        out["stderr"] = said.read().decode("utf-8", "replace")[-2000:]
    print(f"  {sum(tally.counts.values())} operations: {dict(tally.counts)}")
    report.write(out, a.json)
    for wrong in tally.wrong[:5]:
        print(wrong)
    if tally.wrong or out["stderr"] or metrics.running or metrics.queued or metrics.kv_used:
        raise SystemExit(f"FAILED: {len(tally.wrong)} wrong; stderr: {out['stderr'][-500:]!r}")


if __name__ == "__main__":
    main()
