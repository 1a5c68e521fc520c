"""The `llm` command line: the registry's text models (chat, tools, schemas) and its embedding models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import llm
from pydantic import Field

from ..hub.registry import all_models


class LlcudaModel(llm.Model):  # type: ignore[misc]
    """A text model of the registry; loaded at the first use, and kept."""

    can_stream = True
    supports_schema = True
    supports_tools = True

    class Options(llm.Options):  # type: ignore[misc]
        """What `-o NAME VALUE` sets."""

        temperature: float | None = Field(default=None, ge=0)
        top_p: float | None = Field(default=None, gt=0, le=1)
        top_k: int | None = Field(default=None, ge=0)
        max_tokens: int | None = Field(default=None, ge=1)
        seed: int | None = Field(default=None, ge=0)
        n_ctx: int | None = Field(default=None, ge=1)

    def __init__(self, name: str) -> None:
        self.model_id = f"llcuda-ffi/{name}"
        self._name = name
        self._loaded: dict[int | None, Any] = {}

    def _llama(self, n_ctx: int | None) -> Any:
        found = self._loaded.get(n_ctx)
        if found is None:
            from ..llama import Llama

            found = self._loaded[n_ctx] = Llama(self._name, n_ctx=n_ctx, n_parallel=1)
        return found

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Answer a prompt of `llm`, with what was said before in the conversation."""
        options = prompt.options.model_dump(exclude_none=True)
        llama = self._llama(options.pop("n_ctx", None))
        more: dict[str, Any] = {"json_schema": prompt.schema} if prompt.schema else {}
        if prompt.tools:
            more["tools"] = [_tool(tool) for tool in prompt.tools]
        messages = _messages(prompt, conversation)
        if stream:
            done = None
            for chunk in llama.chat_stream(messages, **options, **more):
                done = chunk.completion or done
                if chunk.content:
                    yield chunk.content
        else:
            done = llama.chat(messages, **options, **more)
            yield done.text
        if done is None:
            return
        for call in done.tool_calls:
            response.add_tool_call(
                llm.ToolCall(name=call.name, arguments=json.loads(call.arguments), tool_call_id=call.id)
            )
        response.set_usage(input=done.usage.prompt_tokens, output=done.usage.completion_tokens)


def _tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema},
    }


def _messages(prompt: Any, conversation: Any) -> list[dict[str, Any]]:
    """The conversation in OpenAI's shape: each earlier prompt, its tool results, and what was answered."""
    found: list[dict[str, Any]] = []
    system = prompt.system
    for earlier in conversation.responses if conversation is not None else ():
        system = earlier.prompt.system or system
        found += _asked(earlier.prompt)
        calls = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in earlier.tool_calls_or_raise()
        ]
        found.append(
            {"role": "assistant", "content": earlier.text_or_raise(), **({"tool_calls": calls} if calls else {})}
        )
    found += _asked(prompt)
    return [{"role": "system", "content": system}, *found] if system else found


def _asked(prompt: Any) -> list[dict[str, Any]]:
    results = [
        {"role": "tool", "tool_call_id": result.tool_call_id, "name": result.name, "content": result.output}
        for result in prompt.tool_results
    ]
    return [*results, {"role": "user", "content": prompt.prompt}] if prompt.prompt else results


class LlcudaEmbeddingModel(llm.EmbeddingModel):  # type: ignore[misc]
    """One registry name; loaded at the first use."""

    supports_text = True
    supports_binary = False
    batch_size = 512

    def __init__(self, name: str) -> None:
        self.model_id = f"llcuda-ffi/{name}"
        self._name = name
        self._embedder: Any = None

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        """Vectors of texts."""
        if self._embedder is None:
            from ..embedder import Embedder

            self._embedder = Embedder(self._name)
        texts = [item if isinstance(item, str) else item.decode("utf-8", "replace") for item in items]
        yield from self._embedder.encode(texts, truncate=True).tolist()


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., Any]) -> None:
    """Called by llm: every text model of the registry."""
    for model in all_models():
        if not model.convert_wheel:
            register(LlcudaModel(model.name))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Callable[[Any], None]) -> None:
    """Called by llm."""
    for model in all_models():
        if model.convert_wheel:
            register(LlcudaEmbeddingModel(model.name))
