"""The `openai` package as a client of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..support.server_process import Server

pytestmark = pytest.mark.heavy
MESSAGES = [{"role": "user", "content": "Say hello."}]


def test_openai_client(smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    """Its chats, streams, tools, completions, embeddings, models and errors work against ours."""
    openai = pytest.importorskip("openai")
    server = Server(tmp_path / "log", smollm2, "--embedding-model", minilm, "-c", 512, "--api-key", "k")
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="k", max_retries=0)
        names = [model.id for model in client.models.list()]
        chat = client.chat.completions.create(model=names[0], messages=MESSAGES, max_tokens=8, seed=1, logprobs=True)
        assert chat.choices[0].message.content
        assert chat.usage.completion_tokens == len(chat.choices[0].logprobs.content)
        stream = client.chat.completions.create(
            model=names[0], messages=MESSAGES, max_tokens=8, seed=1, stream=True, stream_options={"include_usage": True}
        )
        events = list(stream)
        text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        assert text == chat.choices[0].message.content
        assert events[-1].usage.completion_tokens == chat.usage.completion_tokens
        tool = {"name": "now", "parameters": {"type": "object", "properties": {}}}
        called = client.chat.completions.create(
            model=names[0],
            messages=MESSAGES,
            tools=[{"type": "function", "function": tool}],
            tool_choice={"type": "function", "function": {"name": "now"}},
            max_tokens=64,
        )
        call = called.choices[0].message.tool_calls[0]
        assert call.function.name == "now"
        assert isinstance(json.loads(call.function.arguments), dict)
        assert client.completions.create(model=names[0], prompt="Once", max_tokens=4).choices[0].text
        vectors = client.embeddings.create(model=names[1], input=["a cat", "a dog"])  # asks for base64
        assert len(vectors.data[1].embedding) == 384
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model=names[0], messages=MESSAGES, temperature=-1)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="x").models.list()
        client.close()
    finally:
        assert server.stop() == 0
