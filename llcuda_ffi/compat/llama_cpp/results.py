"""Results as llama-cpp-python's dicts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ...chat.results import ChatChunk, ChatCompletion, usage_dict
from ...core.vocab import Vocab
from ...engine.results import Chunk, Completion, TokenLogprob

FINISH = {"eog": "stop", "stop": "stop", "length": "length", "cancelled": "length"}


class Completions:
    """Makes the dicts of one call to create_completion."""

    def __init__(self, model: str, vocab: Vocab) -> None:
        self._vocab = vocab
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, done: Completion, suffix: str = "") -> dict[str, Any]:
        """A completion."""
        scored: list[TokenLogprob | None] | None = None
        if done.logprobs is not None:
            scored = [*(done.prompt_logprobs or []), *done.logprobs]
        choice = self._choice(done.text + suffix, scored, FINISH[done.finish_reason])
        return {**self._head, "choices": [choice], "usage": usage_dict(done.usage)}

    def stream(self, chunks: Iterator[Chunk], suffix: str = "") -> Iterator[dict[str, Any]]:
        """The pieces of a completion."""
        for chunk in chunks:
            finish = None if chunk.finish_reason is None else FINISH[chunk.finish_reason]
            text = chunk.text + suffix if finish else chunk.text
            if text or finish:
                yield {**self._head, "choices": [self._choice(text, chunk.logprobs, finish)]}

    def _choice(self, text: str, scored: Sequence[TokenLogprob | None] | None, finish: str | None) -> dict[str, Any]:
        return {"text": text, "index": 0, "logprobs": self._logprobs(scored), "finish_reason": finish}

    def _logprobs(self, scored: Sequence[TokenLogprob | None] | None) -> dict[str, Any] | None:
        if scored is None:
            return None
        tokens = ["" if entry is None else entry.bytes.decode("utf-8", "replace") for entry in scored]
        offsets = [0]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "text_offset": offsets[:-1],
            "token_logprobs": [None if entry is None else entry.logprob for entry in scored],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in scored],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        piece = self._vocab.piece
        return {piece(token, special=True).decode("utf-8", "replace"): value for token, value in entry.top}


def chat_dict(done: ChatCompletion, function: bool) -> dict[str, Any]:
    """A chat completion; with `function` a call is told in the older form too."""
    out = done.to_dict()
    for choice in out["choices"]:
        calls = choice["message"].get("tool_calls")
        if function and calls:
            choice["message"]["function_call"] = calls[0]["function"]
    return out


def chat_dicts(chunks: Iterator[ChatChunk]) -> Iterator[dict[str, Any]]:
    """The pieces of a chat completion; the first one has the role."""
    first = True
    for chunk in chunks:
        out = chunk.to_dict()
        if first:
            first = False
            role = {**out["choices"][0], "delta": {"role": "assistant"}, "finish_reason": None, "logprobs": None}
            yield {**out, "choices": [role]}
        if out["choices"][0]["delta"] or out["choices"][0]["finish_reason"] or out["choices"][0]["logprobs"]:
            yield out


def embedding_dict(model: str, vectors: Sequence[Any], n_tokens: int) -> dict[str, Any]:
    """What create_embedding gives."""
    data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
