"""Conversations whose prompt somebody else has written: answered as `chat` answers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...chat.methods import prepare_all
from ...chat.request import ChatRequest
from ...chat.results import ChatChunk, ChatCompletion
from ...llama import Llama
from ...sampling_params import SamplingParams

_TEMPLATE = "{{ messages[0].content }}"  # one for all prompts, so that it is looked at once


def prepared(
    llm: Llama, prompt: str, tokens: Sequence[int], params: SamplingParams, options: Mapping[str, Any]
) -> ChatRequest:
    """A request whose prompt is this one.

    Args:
        tokens: of the prompt.
        options: of `Llama.chat`.

    Raises:
        as `Llama.chat`.
    """
    plain = {**options, "template": _TEMPLATE, "chat_template_kwargs": None}
    [request], _ = prepare_all(llm, [{"role": "user", "content": "x"}], params, plain)
    ids = np.array(tokens, np.int32)
    return replace(request, text=prompt, tokens=ids, format=replace(request.format, prompt=prompt))


def answer(llm: Llama, request: ChatRequest) -> ChatCompletion:
    """The answer, whole."""
    return request.answer([llm.generate(request.prompt, request.params)])


def stream(llm: Llama, request: ChatRequest) -> Iterator[ChatChunk]:
    """The answer, piece by piece."""
    parts = request.stream()
    for chunk in llm.stream(request.prompt, request.params):
        yield from parts.feed(chunk)
