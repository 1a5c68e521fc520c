"""The oracle: however a completion is asked for, in whatever company, with whatever the cache holds, it is the
beginning of the whole, cold, lone one.

pytest --hypothesis-profile=long: many more cases; -m soak: on other kinds of memory.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

from llcuda_ffi import AsyncLlama, Llama, Model
from llcuda_ffi.engine.results import Completion

from ..support.asking import CALLERS, WAYS, Ask, Got, posting
from ..support.tiny_architectures import TINY, lively
from ..support.tiny_model import CHAT, make_tiny_llama

pytest.importorskip("llguidance")
server = pytest.importorskip("llcuda_ffi.server")

LONG = [5 + i * i % 200 for i in range(464)]  # with an answer it does not fit the context
PROMPTS: list[Any] = ["the quick brown", "one two three", "é🙂", "a model reads <|im_end|> tokens", LONG]
# what a random model writes is mostly no UTF-8; constrained, it writes characters of several bytes and tokens
CONSTRAINTS: list[dict[str, Any]] = [
    {},
    {"regex": "(🙂|é|ab|e\u0301| the|👩🏽‍🚀){3,12}"},
    {"choices": ["🙂🙂🙂🙂 one", "🙂🙂 two", "ab"]},
    {"json_schema": {"type": "object", "properties": {"é": {"enum": ["🙂 a", "b"]}}, "required": ["é"]}},
    {"json_schema": {"type": "integer"}},
]
_F = {"type": "object", "properties": {"é": {"enum": ["🙂 a", "b"]}, "n": {"type": "integer"}}, "required": ["é"]}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": _F}},
    {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}},
]
CHOICES: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "find"}}]
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ngram": {"draft": "ngram"},
    "draft": {"draft": "model"},
    "cells": {"kv_cells": 1300, "host_cache_bytes": 1 << 24},
}
CASES = {"llama": 1500, "lfm2": 500}  # requests, each compared with the lone, cold answer
MOST = 8  # at once


class Bench:
    """One model with engines of every kind, asked by threads, tasks and a server; and the one that is asked alone."""

    def __init__(self, path: Path, draft: Path, cases: int = 1, tolerance: float = 1e-3) -> None:
        """`tolerance`: of log probabilities, which other batch shapes change."""
        self.cases, self.tolerance, self.compared = cases, tolerance, 0
        self.model, self.draft = Model.load(path), Model.load(draft)
        common: dict[str, Any] = {"n_ctx": 480, "n_threads": 1, "kv_type": "f32", "flash_attn": False}
        self.cold = Llama(self.model, n_parallel=1, prefix_cache=False, **common)
        memory = self.cold.context.memory
        self.shifts = memory is not None and memory.can_shift
        self.led: dict[str, Llama] = {}
        self.other: dict[str, AsyncLlama] = {}
        self._wholes: dict[str, Any] = {}
        self._prompts: dict[str, Sequence[int]] = {}
        for name, kind in ENGINES.items():
            own = {**kind, "draft": self.draft} if kind.get("draft") == "model" else kind
            self.led[name] = Llama(self.model, n_parallel=3, **common, **own)
            self.other[name] = AsyncLlama(self.model, n_parallel=3, **common, **own)
        app = server.create_app(server.Models.of(*self.other.values(), names=list(self.other)))
        self.post, self.loop = posting(app), asyncio.new_event_loop()

    def whole(self, ask: Ask, **changed: Any) -> Any:
        """The lone, cold answer; of a chat without tools its raw completion."""
        params, prompt = {**ask.params, **changed}, ask.prompt
        params["logprobs"] = 2  # which changes no token
        key = repr((prompt, params, ask.chat))
        if key not in self._wholes:
            if "tools" in params:
                found: Any = self.cold.chat(ask.messages, **params)
            else:
                if ask.chat:
                    if prompt not in self._prompts:
                        self._prompts[prompt] = self.cold.chat(ask.messages, max_tokens=1).prompt_tokens
                    prompt = self._prompts[prompt]
                found = self.cold.generate(prompt, **params)
            self._wholes[key] = found
        return self._wholes[key]

    def run(self, engine: str, asks: list[Ask]) -> list[list[Got]]:
        """All answers, asked for at once."""

        async def together() -> list[list[Got]]:
            led, other = self.led[engine], self.other[engine]
            return await asyncio.gather(*(ask.run(led, other, self.post, engine) for ask in asks))

        return self.loop.run_until_complete(together())

    def close(self) -> None:
        """Free everything."""
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        for llm in (*self.other.values(), *self.led.values(), self.cold, self.model, self.draft):
            llm.close()  # type: ignore[attr-defined]


OTHERS = ["mamba", "gemma3", "granite-hybrid", "deepseek2", "qwen35", "phi3"]


@pytest.fixture(
    scope="module", params=["llama", "lfm2", *(pytest.param(kind, marks=pytest.mark.soak) for kind in OTHERS)]
)
def bench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind, path = request.param, tmp_path_factory.mktemp("oracle") / "tiny.gguf"
    draft = path.with_name("draft.gguf")
    if kind == "llama":
        make_tiny_llama(path, seed=4)
    else:
        file = lively(TINY[kind]())
        file.metadata["tokenizer.chat_template"] = CHAT
        file.write(path)
    if kind == "gemma3":  # has a vocabulary of its own
        draft = path
    else:
        make_tiny_llama(draft, seed=4, layers=1)
    bench = Bench(path, draft, CASES.get(kind, 2000), 1e-3 if kind == "llama" else 0.05)
    yield bench
    bench.close()


def _shown(data: bytes) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def expected(llm: Llama, whole: Completion, params: dict[str, Any]) -> tuple[str, int, str]:
    """Text, number of tokens and finish reason of the whole completion where its ends are these."""
    ids = whole.token_ids[:-1] if whole.finish_reason == "eog" else whole.token_ids
    keeps, last = params.get("include_stop_str_in_output"), params.get("stop_token_ids", ())
    for n in range(1, len(ids) + 1):
        before, text = (_shown(b"".join(map(llm.vocab.piece, ids[:k]))) for k in (n - 1, n))
        ends = ids[n - 1] in last
        for end in range(1, len(text) + 1) if keeps or not ends else ():
            found = [stop for stop in params["stop"] if text[:end].endswith(stop)]
            if found:
                return text[: end if keeps else end - len(max(found, key=len))], n, "stop"
        if ends:
            return text if keeps else before, n, "stop"
    return whole.text, len(whole.token_ids), whole.finish_reason


def drawn(draw: Callable[[st.SearchStrategy[Any]], Any], bench: Bench) -> Ask:
    """A request with stop strings cut from its answer."""
    way, caller = draw(st.sampled_from(WAYS)), draw(st.sampled_from(CALLERS))
    chat, params = way.startswith("chat"), dict(draw(st.sampled_from(CONSTRAINTS)))
    prompt = draw(st.sampled_from(PROMPTS[:-1] if chat else PROMPTS))
    if chat and draw(st.integers(0, 2)) == 0:
        params = {"tools": TOOLS, "tool_choice": draw(st.sampled_from(CHOICES)), "overflow": "stop"}
    most = draw(st.sampled_from([5, 24, 80] if "tools" in params else [1, 5, 24]))
    params |= {"max_tokens": most, "seed": draw(st.integers(0, 1)), "temperature": draw(st.sampled_from([0.0, 1.0]))}
    logprobs = draw(st.sampled_from([None, 0, 2]))
    if prompt is LONG:
        overflow = draw(st.sampled_from(["stop", "shift"] if bench.shifts else ["stop"]))
        params |= {"overflow": overflow, **({"keep": draw(st.sampled_from([0, 5]))} if overflow == "shift" else {})}
    if logprobs is not None:
        params["logprobs"] = logprobs
    ask = Ask(way, caller, prompt, params)
    whole = bench.whole(ask)
    text = whole.tool_calls[0].arguments if "tools" in params and whole.tool_calls else whole.text
    params["stop"] = []
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, max(0, len(text) - 1)))
        if stop := text[start : start + draw(st.integers(1, 6))]:
            params["stop"].append(stop)
    if not chat and draw(st.integers(0, 3)) == 0:
        params["include_stop_str_in_output"] = True
    if not chat and draw(st.integers(0, 3)) == 0:
        params["stop_token_ids"] = [draw(st.sampled_from(whole.token_ids))]
    if draw(st.integers(0, 4)) == 0:
        params["n"] = draw(st.integers(2, 3))
    if way.endswith("stream") and draw(st.integers(0, 5)) == 0:
        ask.leave = draw(st.integers(1, 4))
    return ask


ENDS = ("stop", "stop_token_ids", "include_stop_str_in_output", "n")


def check(bench: Bench, ask: Ask, i: int, got: Got) -> None:
    """Answer `i` of a request is what it should be."""
    params = ask.params
    own_seed = params["seed"] + i
    if "tools" in params:
        want = bench.whole(
            Ask(ask.way, ask.caller, ask.prompt, {k: v for k, v in params.items() if k != "n"}), seed=own_seed
        )
        message, finish = want.message, want.finish_reason
        logprobs = want.choices[0].logprobs
        if not got.over:
            assert (message.content or "").startswith(got.text)
            return
        assert got.text == (message.content or "")
        assert got.calls == [(call.name, call.arguments) for call in message.tool_calls]
        assert got.finish == finish
        _same_logprobs(bench, ask, got, logprobs)
        return
    whole = bench.whole(
        Ask(ask.way, ask.caller, ask.prompt, {k: v for k, v in params.items() if k not in ENDS}), seed=own_seed
    )
    text, n, finish = expected(bench.cold, whole, params)
    ids = whole.token_ids[:n]
    told = finish == "eog" and (ask.chat or ask.caller == "server")
    if got.pieces is not None:
        assert "".join(piece for piece, _, _ in got.pieces) == got.text
        for _, tokens, logprobs in got.pieces:
            if logprobs is not None:
                assert [entry.token for entry in logprobs] == tokens
    if not got.over:
        assert text.startswith(got.text)
        assert got.pieces is not None
        come = [token for _, tokens, _ in got.pieces for token in tokens]
        assert come == ids[: len(come)]
        return
    assert got.text == text
    assert got.finish == ("stop" if told else finish)
    if got.token_ids is not None:
        assert got.token_ids == ids
        if got.pieces is not None:
            assert [token for _, tokens, _ in got.pieces for token in tokens] == ids
    assert got.n_tokens in (None, n)
    _same_logprobs(bench, ask, got, (whole.logprobs or [])[:n])
    if ask.caller != "server":
        assert got.parsed == (whole.parsed if finish != "stop" else None)
        cut = whole.finish_reason == "length" and params.get("json_schema") == {"type": "integer"}
        if cut and text not in ("0", "-0"):
            assert got.parsed is None  # another digit could follow


def _same_logprobs(bench: Bench, ask: Ask, got: Got, whole: Sequence[Any] | None) -> None:
    if "logprobs" not in ask.params:
        assert got.logprobs is None
    else:
        assert got.logprobs == pytest.approx([entry.logprob for entry in whole or ()], abs=bench.tolerance)


def test_every_way_gives_the_beginning_of_the_whole(bench: Bench) -> None:
    """By thread, task or HTTP, whole or streamed, one or n, plain or a chat with tools, with drafts, shifts and stop
    strings cut from it, beside up to seven others of which some are left: text, tokens, log probabilities, finish
    reason, calls and parsed value are those of the lone, cold completion up to its end; chunks add up to it."""
    wanted = bench.cases if settings().max_examples <= 100 else settings().max_examples

    def examples(data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from(sorted(ENGINES)))
        asked = [drawn(data.draw, bench) for _ in range(data.draw(st.integers(1, MOST)))]
        before = data.draw(st.sampled_from(["", "", "clear", "load"]))
        for llm in (bench.led[engine], bench.other[engine].llama):
            if before == "clear":
                llm.clear_cache()
            elif before == "load":
                saved = llm.save_state()
                llm.clear_cache()
                llm.load_state(saved)
        for ask, answers in zip(asked, bench.run(engine, asked), strict=True):
            event(f"{engine}, {ask.caller}, {ask.way}")
            assert len(answers) == ask.n
            for i, got in enumerate(answers):
                check(bench, ask, i, got)
        bench.compared += len(asked)

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    while bench.compared < wanted:  # how many a round has is drawn, too
        rounds = max(10, 2 * (wanted - bench.compared) // (1 + MOST))
        several = settings(max_examples=rounds, deadline=None, suppress_health_check=checks)(
            given(data=st.data())(examples)
        )
        (seed(bench.compared)(several) if bench.compared else several)()
