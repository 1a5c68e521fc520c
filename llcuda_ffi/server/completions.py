"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..async_llama import AsyncLlama
from ..chat.results import usage_dict
from ..core.vocab import Vocab
from ..engine.results import Chunk, Completion, Timings, TokenLogprob, Usage
from ..errors import InvalidRequest
from ..params import integer
from ..sampling_params import SamplingParams
from .body import Fields, read_body
from .events import DONE, EventStream, event, merged, while_connected
from .gate import Gate
from .models import Served
from .sampling import each, sampling

FINISH = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "cancelled"}


class Completions:
    """The endpoint."""

    def __init__(self, served: Served, gate: Gate, limit: int) -> None:
        self._served, self._gate, self._limit = served, gate, limit

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        fields = await read_body(request, self._limit)
        llm = self._served.text(fields.take("model"))
        prompts = _prompts(fields)
        stream, with_usage = stream_options(fields)
        params = sampling(fields, SamplingParams(), _logprobs(fields))
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._served.names["text"],
        }
        if stream:
            return EventStream(self._events(llm, prompts, params, head, with_usage))

        async def work() -> Any:
            with self._gate.enter(len(prompts) * params.n):
                tokens = await asyncio.to_thread(lambda: [llm.llama.tokenize_prompt(p) for p in prompts])
                return await llm.generate(tokens, params)

        groups = await while_connected(request.receive, work())
        groups = [g if isinstance(g, list) else [g] for g in groups]
        done: list[Completion] = [c for g in groups for c in g]
        vocab = llm.llama.vocab
        choices = [
            {
                "index": i,
                "text": c.text,
                "logprobs": _logprobs_dict(c.logprobs, vocab),
                "finish_reason": FINISH[c.finish_reason],
            }
            for i, c in enumerate(done)
        ]
        usage = total([c.usage for c in done], params.n)
        return JSONResponse({**head, "choices": choices, "usage": usage, **last_timings(done[0].timings)})

    async def _events(
        self, llm: AsyncLlama, prompts: list[Any], params: SamplingParams, head: dict[str, Any], with_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        n, vocab = params.n, llm.llama.vocab
        usages: dict[int, Usage] = {}
        with self._gate.enter(len(prompts) * n):
            tokens = await asyncio.to_thread(lambda: [llm.llama.tokenize_prompt(p) for p in prompts])
            settings = each(params, n, first_seed(params))
            streams: list[Any] = [llm.stream(t, p) for t in tokens for p in settings]
            usual = {"usage": None} if with_usage else {}
            chunk: Chunk
            async for i, chunk in merged(streams):
                finish, whole = chunk.finish_reason, chunk.completion
                if whole is not None:
                    usages[i] = whole.usage
                if not (chunk.text or chunk.logprobs or finish):
                    continue
                choice = {
                    "index": i,
                    "text": chunk.text,
                    "logprobs": _logprobs_dict(chunk.logprobs, vocab),
                    "finish_reason": None if finish is None else FINISH[finish],
                }
                yield event(
                    {**head, "choices": [choice], **usual, **last_timings(None if whole is None else whole.timings)}
                )
            if with_usage:
                yield event({**head, "choices": [], "usage": total([usages[i] for i in sorted(usages)], n)})
            yield DONE


def stream_options(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and to give the usage at its end."""
    stream = fields.flag("stream", False)
    options = Fields(fields.mapping("stream_options"))
    with_usage = options.flag("include_usage", False)
    options.take("include_obfuscation")
    options.end()
    return stream, with_usage


def first_seed(params: SamplingParams) -> int:
    """The seed of the first of n streams."""
    return params.seed if params.seed is not None else secrets.randbelow(2**32 - 1)


def last_timings(timings: Timings | None) -> dict[str, Any]:
    """The timings, for the last chunk of a choice."""
    return {} if timings is None else {"timings": dataclasses.asdict(timings)}


def total(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """The usage of completions, n for each prompt, which is counted once."""
    return usage_dict(
        Usage(
            sum(u.prompt_tokens for u in usages[::n]),
            sum(u.cached_tokens for u in usages[::n]),
            sum(u.completion_tokens for u in usages),
        )
    )


def _prompts(fields: Fields) -> list[Any]:
    prompt = fields.take("prompt")
    if fields.take("suffix"):
        raise InvalidRequest("suffix is not supported: write the prompt with the model's own marks for infilling")
    if fields.flag("echo", False):
        raise InvalidRequest("echo is not supported: the prompt is known")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("prompt must be a text, a list of texts, token ids, or a list of those, and not empty")
    if all(type(t) is int for t in prompt):
        return [prompt]
    for i, one in enumerate(prompt):
        if not isinstance(one, str) and not (isinstance(one, list) and one and all(type(t) is int for t in one)):
            raise InvalidRequest(f"prompt[{i}] must be a text or a list of token ids, not {one!r:.60}")
    return prompt


def _logprobs(fields: Fields) -> int | None:
    best_of = fields.take("best_of")
    if best_of is not None and integer("best_of", best_of, 1, 1024) != 1:
        raise InvalidRequest("best_of is not supported: use n")
    value = fields.take("logprobs")
    return None if value is None else integer("logprobs", value, 0, 20)


def _logprobs_dict(entries: list[TokenLogprob] | None, vocab: Vocab) -> dict[str, Any] | None:
    """OpenAI's older form."""
    if entries is None:
        return None
    tokens = [e.bytes.decode("utf-8", "replace") for e in entries]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [e.logprob for e in entries],
        "top_logprobs": [
            {vocab.piece(t, special=True).decode("utf-8", "replace"): value for t, value in e.top} for e in entries
        ],
        "text_offset": offsets,
    }
