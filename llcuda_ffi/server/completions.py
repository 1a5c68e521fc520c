"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..chat.identity import created_now, new_id
from ..chat.response_format import with_response_format
from ..core.vocab import Vocab
from ..engine.results import Chunk, Completion, TokenLogprob
from ..errors import InvalidRequest
from ..llama import Llama
from ..sampling_params import SamplingParams
from .events import DONE, ChunkWriter, while_connected
from .prompts import Prompt, all_ids, prompts_of
from .sampling import sampling
from .state import Asked, ServerState
from .token_logprobs import CompletionLogprobs, prompt_logprobs
from .usage import FINISH, stream_options, timings_dict, total

_DEFAULTS = SamplingParams(overflow="stop")


class Completions:
    """The endpoint."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def post(self, request: Request) -> Response:
        """Answer a request."""
        async with self._state.asked(request, "text") as asked:
            fields, model = asked.fields, asked.model
            stream, with_usage = stream_options(fields)
            prompts = prompts_of(fields.take("prompt"))
            suffix = fields.text("suffix", "")
            best_of = fields.integer("best_of", 1, 128)
            top = fields.integer("logprobs", 0, 20, fields.integer("n_probs", 0, 20) or None)
            of_prompt = fields.integer("prompt_logprobs", 0, 20)
            echo, with_ids = fields.flag("echo", False), fields.flag("return_token_ids", False)
            special = fields.flag("add_special_tokens", True)
            cut = fields.integer("truncate_prompt_tokens", -1, 1 << 30) or 0
            form = fields.mapping("response_format")
            params = sampling(asked, _DEFAULTS, top)
            if form:
                params = with_response_format(params, form)
            if stream and (of_prompt is not None or (echo and top is not None)):
                raise InvalidRequest("log probabilities of a prompt cannot be streamed: drop stream, or echo")
            if echo or of_prompt is not None:
                params = params.replace(echo=echo, prompt_logprobs=top if echo and of_prompt is None else of_prompt)
            n = params.n
            if best_of is not None and best_of != n:
                params = _best_of(params, best_of, stream)
            asked.enter(len(prompts) * params.n)
            llm, vocab = model.text(), model.text().llama.vocab
            if suffix:
                tokens = await asyncio.to_thread(_infill_ids, llm.llama, prompts, suffix)
            else:
                tokens = await all_ids(vocab, prompts, special=special)
            if cut:  # -1: to what the context holds
                cut = cut if cut > 0 else max(1, llm.llama.n_ctx - (params.max_tokens or 1))
                tokens = [ids[-cut:] for ids in tokens]
            head = {
                "id": f"cmpl-{new_id(12)}",
                "object": "text_completion",
                "created": created_now(),
                "model": model.name,
                "system_fingerprint": model.fingerprint,
            }
            if stream:
                return asked.stream(self._events(asked, tokens, params, head, with_usage, with_ids))
            made = await while_connected(request.receive, llm.generate(tokens, params))
            groups: list[list[Completion]] = [g if isinstance(g, list) else [g] for g in made]
        done = [c for group in groups for c in group]
        asked.finished((c.usage, c.timings, FINISH[c.finish_reason]) for c in done)
        usage = total([c.usage for c in done], params.n)
        if params.n != n:
            done = [c for group in groups for c in sorted(group, key=_mean_logprob, reverse=True)[:n]]
        choices = [
            {
                "index": i,
                "text": c.text,
                "logprobs": None if top is None else _logprobs(c, vocab, echo),
                "finish_reason": FINISH[c.finish_reason],
                "stop_reason": c.stop_reason,
                **({} if of_prompt is None else {"prompt_logprobs": prompt_logprobs(c.prompt_logprobs)}),
                **({"prompt_token_ids": c.prompt_token_ids, "token_ids": c.token_ids} if with_ids else {}),
            }
            for i, c in enumerate(done)
        ]
        timings = timings_dict(done[0].timings, done[0].usage)
        return JSONResponse({**head, "choices": choices, "usage": usage, "timings": timings})

    async def _events(
        self,
        asked: Asked,
        tokens: Sequence[Sequence[int]],
        params: SamplingParams,
        head: dict[str, Any],
        with_usage: bool,
        with_ids: bool,
    ) -> AsyncGenerator[bytes, None]:
        n, vocab = params.n, asked.model.text().llama.vocab
        starts = [len(vocab.detokenize(t, special=True)) if params.echo else 0 for t in tokens]
        logprobs = [CompletionLogprobs(start) for start in starts for _ in range(n)]
        done: dict[int, Completion] = {}
        begun: set[int] = set()
        writer = ChunkWriter({**head, "usage": None} if with_usage else head)
        chunk: Chunk
        async for prompt, chunk in asked.chunks(tokens, params):
            i = prompt * n + chunk.index
            finish, whole = chunk.finish_reason, chunk.completion
            if whole is not None:
                done[i] = whole
            if not (chunk.text or chunk.logprobs or finish or with_ids):
                continue
            if finish is None and chunk.logprobs is None and not with_ids:
                yield writer.text(i, '"text":', chunk.text, ',"finish_reason":null,"logprobs":null}')
                continue
            choice: dict[str, Any] = {
                "index": i,
                "text": chunk.text,
                "logprobs": logprobs[i].to_dict(chunk.logprobs),
                "finish_reason": None if finish is None else FINISH[finish],
            }
            if with_ids:
                choice["token_ids"] = chunk.token_ids
                if i not in begun:
                    begun.add(i)
                    choice["prompt_token_ids"] = list(map(int, tokens[prompt]))
            last = {}
            if whole is not None:
                choice["stop_reason"] = whole.stop_reason
                last["timings"] = timings_dict(whole.timings, whole.usage)
            yield writer.choice(choice, **last)
        asked.finished((c.usage, c.timings, FINISH[c.finish_reason]) for c in done.values())
        if with_usage:
            usage = total([done[i].usage for i in sorted(done)], n)
            yield writer.last(usage, timings_dict(done[0].timings, done[0].usage)) + DONE
        else:
            yield DONE


def _best_of(params: SamplingParams, best_of: int, stream: bool) -> SamplingParams:
    """Settings that make `best_of` completions, of which the likeliest n are given.

    Raises:
        InvalidRequest: it is less than n, or to be streamed.
    """
    if best_of < params.n or stream:
        raise InvalidRequest(f"best_of={best_of} must be at least n={params.n}, and cannot be streamed")
    return params.replace(n=best_of, logprobs=params.logprobs or 0)


def _infill_ids(llama: Llama, prompts: Sequence[Prompt], suffix: str) -> list[list[int]]:
    """The token ids by which a code model fills in what stands between each prompt and the suffix."""
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("suffix goes with prompts that are texts")
    return [llama.infill_prompt(str(prompt), suffix).tolist() for prompt in prompts]


def _logprobs(completion: Completion, vocab: Vocab, echo: bool) -> dict[str, Any]:
    """OpenAI's logprobs of a completion, those of the prompt before it where it is echoed."""
    entries: list[TokenLogprob | None] = list(completion.logprobs or ())
    pieces: list[bytes] = []
    if echo and completion.prompt_logprobs is not None:
        entries = [*completion.prompt_logprobs, *entries]
        pieces = [vocab.piece(token, special=True) for token in completion.prompt_token_ids[:1]]
    found: dict[str, Any] = CompletionLogprobs().to_dict(entries, pieces)
    return found


def _mean_logprob(completion: Completion) -> float:
    entries = completion.logprobs or ()
    return sum(entry.logprob for entry in entries) / max(1, len(entries))
