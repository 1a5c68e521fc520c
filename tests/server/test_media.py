"""A server of a model that sees: an image in every API's words, and what it takes from nobody."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llcuda_ffi import bundles

from ..support.server_process import H, Server
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer


def picture(seed: int) -> str:
    """A PNG in base64."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 56, 3), np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


DATA = picture(0)
URL = f"data:image/png;base64,{DATA}"
ASK = {"type": "text", "text": "what is it?"}
SET: dict[str, Any] = {"max_tokens": 4, "temperature": 0}


def asked(url: object, *more: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": u}} for u in (url, *more)] + [ASK]}]


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundles.ensure("v0.6.0-cpu", progress=False)
    place = tmp_path_factory.mktemp("seer")
    make_tiny_seer(place / "seer.gguf")
    make_tiny_projector(place / "mmproj-seer-f32.gguf")
    options = ("--mmproj", "auto", "--bundle", "v0.6.0-cpu", "--alias", "seer", "-c", 1024, "--parallel", 4)
    server = Server(place / "log", place / "seer.gguf", "--isolate", *options)  # in one process: test_page.py
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server_log(place), server_log(place)


def server_log(place: Path) -> str:
    return (place / "log").read_text()


def test_every_api_shows_the_same_image(seer: Server) -> None:
    """OpenAI's chats and responses, Anthropic's messages: the same prompt, counted, and the same answer."""
    status, chat = seer.post(H, messages=asked(URL), **SET)
    assert status == 200, chat
    text, n = chat["choices"][0]["message"]["content"], chat["usage"]["prompt_tokens"]
    assert n > 40
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    status, message = seer.post("/v1/messages", messages=[{"role": "user", "content": [block, ASK]}], **SET)
    assert status == 200, message
    assert "".join(part["text"] for part in message["content"]) == text
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == n
    parts = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": ASK["text"]}]
    status, response = seer.post(
        "/v1/responses", input=[{"role": "user", "content": parts}], max_output_tokens=4, temperature=0
    )
    assert status == 200, response
    assert response["usage"]["input_tokens"] == n
    events = list(seer.stream(H, messages=asked(URL), **SET))
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == text
    count = seer.post("/v1/messages/count_tokens", messages=[{"role": "user", "content": [block, ASK]}])[1]
    assert count["input_tokens"] == n


def test_llama_servers_prompt_with_media(seer: Server) -> None:
    """`multimodal_data`, as base64 and as data: URLs, beside texts; marks and data that do not fit are 400."""

    def asked_with(*data: object, text: str = "the <__media__> shows") -> dict[str, Any]:
        return {"prompt": {"prompt_string": text, "multimodal_data": list(data)}, "n_predict": 4, "temperature": 0}

    status, answer = seer.post("/completion", **asked_with(DATA))
    assert status == 200, answer
    assert answer["tokens_evaluated"] > 30
    assert answer["prompt"] == "the <image> shows"
    assert seer.post("/completion", **asked_with(URL))[1]["content"] == answer["content"]
    both = ["abc", asked_with(DATA)["prompt"]]
    status, answers = seer.post("/completion", prompt=both, n_predict=4, temperature=0)
    assert status == 200
    assert [each["content"] for each in answers if each["index"] == 1] == [answer["content"]]
    for wrong in (
        asked_with(DATA, text="a"),
        asked_with(DATA, text="<__media__>"),
        asked_with("@@"),
        asked_with("/etc/passwd"),
        asked_with(5),
        asked_with(*[DATA] * 17, text="<__media__>" * 17 + "a"),
    ):
        status, answer = seer.post("/completion", **wrong)
        assert status == 400, answer
    part = {"type": "input_image", "file_id": "a"}
    status, answer = seer.post("/v1/responses", input=[{"role": "user", "content": [part]}], max_output_tokens=4)
    assert status == 400
    assert "data: URL" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        (asked("/etc/passwd"), "reads no files"),
        (asked("http://127.0.0.1:1/a.png"), "fetches nothing"),
        (asked("file:///etc/passwd"), "reads no files"),
        (asked(["data:image/png;base64,AA"]), "data: URLs"),
        (asked("data:image/png;base64,@@"), "base64"),
        (asked("data:image/png;base64,AAAA"), "cannot be read"),
        (asked(*[URL] * 17), "more than 16"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}, ASK]}], "no sound"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": URL}}, ASK]}], "video"),
    ],
    ids=range(9),
)
def test_refused(seer: Server, messages: list[dict[str, Any]], word: str) -> None:
    """Files and addresses, damaged data, too many, what the model does not take: 400, and it goes on."""
    status, answer = seer.post(H, messages=messages, **SET)
    assert status == 400, answer
    assert word in answer["error"]["message"], answer


def test_anthropic_addresses_are_refused(seer: Server) -> None:
    """An image's source of type url, or of none that there is."""
    for source in ({"type": "url", "url": "https://example.org/a.png"}, {"type": "file", "file_id": "a"}, None):
        block = {"type": "image", "source": source}
        status, answer = seer.post("/v1/messages", messages=[{"role": "user", "content": [block, ASK]}], **SET)
        assert status == 400, answer
