"""The `openai` package as a client of the server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llcuda_ffi import bundles

from ..support.server_process import Server
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer

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


def test_openai_client_shows_an_image(tmp_path: Path) -> None:
    """An image goes through the client as its documents say; what is no data is its BadRequestError."""
    openai = pytest.importorskip("openai")
    bundles.ensure("v0.6.0-cpu", progress=False)
    make_tiny_seer(tmp_path / "seer.gguf")
    make_tiny_projector(tmp_path / "mmproj-seer.gguf")
    options = ("--mmproj", "auto", "--bundle", "v0.6.0-cpu", "-c", 512)
    server = Server(tmp_path / "log", tmp_path / "seer.gguf", *options)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="k", max_retries=0)

        def ask(url: str) -> Any:
            parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
            parts.append({"type": "text", "text": "say"})
            messages: Any = [{"role": "user", "content": parts}]
            return client.chat.completions.create(model="seer", messages=messages, max_tokens=4, temperature=0)

        made = io.BytesIO()
        Image.new("RGB", (64, 48), (200, 30, 30)).save(made, "PNG")
        answer = ask("data:image/png;base64," + base64.b64encode(made.getvalue()).decode())
        assert answer.choices[0].finish_reason
        assert answer.usage.prompt_tokens > 40
        with pytest.raises(openai.BadRequestError, match="data: URLs"):
            ask("https://example.org/a.png")
        client.close()
    finally:
        assert server.stop() == 0
