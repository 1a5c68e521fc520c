"""POST /completion and /infill."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...core.vocab import Vocab
from ...engine.media import MediaPrompt
from ...engine.results import Chunk, Completion, TokenLogprob
from ...errors import InvalidRequest, UnsupportedModel
from ...sampling_params import SamplingParams
from ..body import Fields
from ..events import event, while_connected
from ..prompts import MediaText, all_ids, media_prompt, prompts_of
from ..sampling import sampling
from ..served_model import ServedModel
from ..state import Asked, ServerState
from ..usage import FINISH, timings_dict
from .settings import generation_settings

_STOP_TYPE = {"eog": "eos", "stop": "word", "length": "limit", "cancelled": "limit"}


class NativeCompletion:
    """The endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def completion(self, request: Request) -> Response:
        """Answer /completion."""
        return await self._answer(request, infill=False)

    async def infill(self, request: Request) -> Response:
        """Answer /infill: what stands between input_prefix and input_suffix."""
        return await self._answer(request, infill=True)

    async def _answer(self, request: Request, *, infill: bool) -> Response:
        async with self._state.asked(request, "text") as asked:
            fields, model = asked.fields, asked.model
            llm, vocab = model.text(), model.text().llama.vocab
            stream = fields.flag("stream", False)
            shown = _Shown(fields)
            if infill:
                prompts: list[Any] = [await asyncio.to_thread(_infill_ids, fields, vocab)]
            else:
                prompts = prompts_of(fields.take("prompt"), media=True)
            params = sampling(asked, SamplingParams(max_tokens=None, overflow="stop"), shown.n_probs)
            asked.enter(len(prompts) * params.n)
            seen = {
                i: await asyncio.to_thread(media_prompt, llm.llama, prompt)
                for i, prompt in enumerate(prompts)
                if isinstance(prompt, MediaText)
            }
            ids = iter(await all_ids(vocab, [prompt for prompt in prompts if not isinstance(prompt, MediaText)]))
            tokens = [seen[i] if i in seen else next(ids) for i in range(len(prompts))]
            if stream:
                return asked.stream(self._events(asked, tokens, params, shown))
            made = await while_connected(request.receive, llm.generate(tokens, params))
            done: list[Completion] = [c for g in made for c in (g if isinstance(g, list) else [g])]
            asked.finished((c.usage, c.timings, FINISH[c.finish_reason]) for c in done)
            answers = [
                shown.final(i, c, model, params, tokens[i // params.n], c.text, c.token_ids, c.logprobs)
                for i, c in enumerate(done)
            ]
        return JSONResponse(answers if len(answers) > 1 else answers[0])

    async def _events(
        self, asked: Asked, tokens: Sequence[list[int] | MediaPrompt], params: SamplingParams, shown: _Shown
    ) -> AsyncGenerator[bytes, None]:
        model, n = asked.model, params.n
        done: list[Completion] = []
        chunk: Chunk
        async for prompt, chunk in asked.chunks(tokens, params):
            i = prompt * n + chunk.index
            whole = chunk.completion
            if whole is None:
                yield event(shown.part(i, chunk))
            else:
                done.append(whole)
                if chunk.text or chunk.token_ids:
                    yield event(shown.part(i, chunk))
                # the tokens were sent already
                yield event(shown.final(i, whole, model, params, tokens[i // n], "", [], None))
        asked.finished((c.usage, c.timings, FINISH[c.finish_reason]) for c in done)


class _Shown:
    """What an answer shows."""

    def __init__(self, fields: Fields) -> None:
        probs = fields.integer("n_probs", 0, 100, 0)
        if not probs:
            probs = fields.integer("logprobs", 0, 100, 0)
        self.n_probs: int | None = probs or None
        self._tokens = fields.flag("return_tokens", False)
        self._fields = fields.items("response_fields", 256) or None
        for name in self._fields or ():
            if not isinstance(name, str):
                raise InvalidRequest(f"response_fields must be a list of names, not {name!r:.60}")

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """One event of a stream."""
        out: dict[str, Any] = {"index": index, "content": chunk.text, "tokens": chunk.token_ids, "stop": False}
        if chunk.logprobs and self.n_probs:
            out["completion_probabilities"] = _probabilities(chunk.logprobs)
        return out

    def final(
        self,
        index: int,
        done: Completion,
        model: ServedModel,
        params: SamplingParams,
        prompt: Sequence[int] | MediaPrompt,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprob] | None,
    ) -> dict[str, Any]:
        """A whole answer, or the last event of a stream."""
        llama = model.text().llama
        usage = done.usage
        out: dict[str, Any] = {
            "index": index,
            "content": text,
            "tokens": list(tokens) if self._tokens else [],
            "id_slot": -1,
            "stop": True,
            "model": model.name,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "generation_settings": generation_settings(params, done.seed),
            "prompt": prompt.text if isinstance(prompt, MediaPrompt) else llama.vocab.detokenize(prompt, special=True),
            "has_new_line": "\n" in done.text,
            "truncated": done.finish_reason == "length" and usage.total_tokens >= llama.n_ctx,
            "stop_type": _STOP_TYPE[done.finish_reason],
            "stopping_word": done.stop_reason if isinstance(done.stop_reason, str) else "",
            "timings": timings_dict(done.timings, usage),
        }
        if logprobs is not None and self.n_probs:
            out["completion_probabilities"] = _probabilities(logprobs)
        return out if self._fields is None else _picked(out, self._fields)


def _probabilities(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """llama.cpp's form of log probabilities."""

    def one(token: int, piece: bytes, value: float) -> dict[str, Any]:
        return {
            "id": token,
            "token": piece.decode("utf-8", "replace"),
            "bytes": list(piece),
            "logprob": value if math.isfinite(value) else -1e9,
        }

    return [
        {
            **one(entry.token, entry.bytes, entry.logprob),
            "top_logprobs": [
                one(t, piece, value) for (t, value), piece in zip(entry.top, entry.top_bytes, strict=True)
            ],
        }
        for entry in entries
    ]


def _picked(out: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """response_fields: the fields asked for; a slash goes into an object, and the whole names the field."""
    picked: dict[str, Any] = {}
    for name in names:
        value: Any = out
        for part in name.split("/"):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            picked[name] = value
    return picked


_MISSING = object()


def _infill_ids(fields: Fields, vocab: Vocab) -> list[int]:
    """The prompt of /infill: [repository and files] prefix, suffix, and what was begun, between the model's marks.

    Raises:
        UnsupportedModel: the vocabulary has no such marks.
        InvalidRequest: a field is of a wrong type.
    """
    prefix, suffix = fields.text("input_prefix", ""), fields.text("input_suffix", "")
    begun = fields.text("prompt", "")
    extra = fields.objects("input_extra", 256) or []
    marks = {name: vocab.special(name) for name in ("fim_pre", "fim_suf", "fim_mid", "fim_rep", "fim_sep")}
    if any(marks[name] is None for name in ("fim_pre", "fim_suf", "fim_mid")):
        raise UnsupportedModel("the model has no tokens for filling in the middle: use a code model")

    def ids(text: str) -> list[int]:
        found: list[int] = vocab.tokenize(text, add_special=False, parse_special=False).tolist()
        return found

    out: list[int | None] = []
    with_files = marks["fim_sep"] is not None
    if with_files and extra and marks["fim_rep"] is not None:
        out += [marks["fim_rep"], *ids("myproject\n")]
    for i, file in enumerate(extra):
        name, text = file.get("filename", f"file{i}"), file.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidRequest(f"input_extra[{i}] must be an object with filename and text")
        out += [marks["fim_sep"], *ids(f"{name}\n{text}")] if with_files else ids(f"{text}\n")
    if with_files and extra:
        out += [marks["fim_sep"], *ids("filename\n")]
    out += [marks["fim_pre"], *ids(prefix), marks["fim_suf"], *ids(suffix), marks["fim_mid"], *ids(begun)]
    first = vocab.tokenize("", add_special=True).tolist()  # BOS, where the model wants it
    return [t for t in [*first, *out] if t is not None]
