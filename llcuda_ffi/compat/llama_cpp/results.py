"""Results as llama-cpp-python's dicts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ...chat.results import ChatChunk, ChatCompletion, usage_dict
from ...chat.tools.function_call import function_call
from ...core.vocab import Vocab
from ...engine.results import Chunk, Completion, TokenLogprob

FINISH = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "length"}


Scored = Sequence[tuple[bytes, "TokenLogprob | None"]]  # what a token writes, and its probability


class Completions:
    """Makes the dicts of one call to create_completion.

    Args:
        start: where the text of the first token begins, in characters.
    """

    def __init__(self, model: str, vocab: Vocab, start: int) -> None:
        self._vocab, self._at = vocab, start
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, done: Completion) -> dict[str, Any]:
        """A completion."""
        scored = None
        if done.logprobs is not None:
            scored = [*self._echoed(done), *_scored(done.logprobs, done.finish_reason)]
        choice = self._choice(done.text, scored, FINISH[done.finish_reason])
        return {**self._head, "choices": [choice], "usage": usage_dict(done.usage)}

    def stream(self, chunks: Iterator[Chunk]) -> Iterator[dict[str, Any]]:
        """The pieces of a completion."""
        for chunk in chunks:
            scored = None if chunk.logprobs is None else _scored(chunk.logprobs, chunk.finish_reason)
            if chunk.text or scored:
                yield {**self._head, "choices": [self._choice(chunk.text, scored, None)]}
            if chunk.finish_reason is not None:  # after all text: some readers stop where they see it
                yield {**self._head, "choices": [self._choice("", None, FINISH[chunk.finish_reason])]}

    def _echoed(self, done: Completion) -> list[tuple[bytes, TokenLogprob | None]]:
        """The tokens of a prompt that is scored, without its BOS; the first has no probability in OpenAI's form."""
        pieces = map(self._vocab.piece, done.prompt_token_ids)
        found = list(zip(pieces, done.prompt_logprobs or (), strict=False))
        if done.prompt_token_ids[:1] == [self._vocab.bos]:
            del found[:1]
        return [(piece, entry if i else None) for i, (piece, entry) in enumerate(found)]

    def _choice(self, text: str, scored: Scored | None, finish: str | None) -> dict[str, Any]:
        return {"text": text, "index": 0, "logprobs": self._logprobs(scored), "finish_reason": finish}

    def _logprobs(self, scored: Scored | None) -> dict[str, Any] | None:
        if scored is None:
            return None
        tokens = [piece.decode("utf-8", "replace") for piece, _ in scored]
        offsets = list(accumulate(map(len, tokens), initial=self._at))
        self._at = offsets.pop()
        return {
            "tokens": tokens,
            "text_offset": offsets,
            "token_logprobs": [None if entry is None else entry.logprob for _, entry in scored],
            "top_logprobs": [None if entry is None else _top(entry) for _, entry in scored],
        }


def _scored(logprobs: Sequence[TokenLogprob], finish: str | None) -> list[tuple[bytes, TokenLogprob | None]]:
    """What tokens write, and their probabilities; without the model's end, which is no part of the text."""
    return [(entry.bytes, entry) for entry in (logprobs[:-1] if finish == "eog" else logprobs)]


def _top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one."""
    pieces = zip(entry.top_bytes, entry.top, strict=True)
    tops = {piece.decode("utf-8", "replace"): value for piece, (_, value) in pieces}
    return {**tops, entry.bytes.decode("utf-8", "replace"): entry.logprob}


def chat_dict(done: ChatCompletion, model: str, function: bool) -> dict[str, Any]:
    """A chat completion; with `function` a call is told in the older form too."""
    out = {**done.to_dict(), "model": model}
    for choice in out["choices"]:
        if function:
            _add_function_call(choice["message"])
    return out


def chat_dicts(chunks: Iterator[ChatChunk], model: str, function: bool) -> Iterator[dict[str, Any]]:
    """The pieces of a chat completion; the first one has the role. With `function` as in chat_dict."""
    first = True
    for chunk in chunks:
        out = {**chunk.to_dict(), "model": model}
        if first:
            first = False
            role = {**out["choices"][0], "delta": {"role": "assistant"}, "finish_reason": None, "logprobs": None}
            yield {**out, "choices": [role]}
        if function:
            _add_function_call(out["choices"][0]["delta"])
        if out["choices"][0]["delta"] or out["choices"][0]["finish_reason"] or out["choices"][0]["logprobs"]:
            yield out


def _add_function_call(said: dict[str, Any]) -> None:
    """Tell the call of a message or delta in the older form too, in place."""
    call = function_call(said)
    if call is not None:
        said["function_call"] = call


def embedding_dict(model: str, vectors: Sequence[Any], n_tokens: int) -> dict[str, Any]:
    """What create_embedding gives."""
    data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
