"""Whatever body comes, the server refuses it in OpenAI's form and goes on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..support.server_process import MESSAGES, C, H, Server

BAD: list[tuple[str, bytes]] = [
    (C, b""),
    (C, b"{"),
    (C, b"[]"),
    (C, b"\xff\xfe"),
    (C, b'{"prompt": "a", "temperature": NaN}'),
    (C, b'{"prompt": "a", "temperature": 1e999}'),
    (C, b'{"prompt": "a", "temperature": "hot"}'),
    (C, b'{"prompt": "a", "n": 1000000000000}'),
    (C, b'{"prompt": "a", "n": 1000}'),
    (C, b'{"prompt": "a", "max_tokens": -3}'),
    (C, b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}"),
    (C, b'{"prompt": "a", "surprise": 1}'),
    (C, b'{"prompt": "a", "priority": 5}'),
    (C, b'{"prompt": "a", "echo": 1}'),
    (C, b'{"prompt": "a", "suffix": "b"}'),
    (C, b'{"prompt": [], "max_tokens": 1}'),
    (C, b'{"prompt": [99999999]}'),
    (C, b'{"prompt": [[1], "a", 2]}'),
    (C, b'{"prompt": {"a": 1}}'),
    (C, b'{"prompt": "a", "logit_bias": {"x": "much"}}'),
    (C, b'{"prompt": "a", "logit_bias": [1]}'),
    (C, b'{"prompt": "a", "stop": [1]}'),
    (C, b'{"prompt": "a", "stream": "yes"}'),
    (C, b'{"prompt": "a", "grammar": "root ::= ("}'),
    (C, b'{"prompt": "a", "grammar": 1}'),
    (C, b'{"prompt": "a", "regex": 1}'),
    (C, b'{"prompt": "a", "choices": 1}'),
    (C, b'{"prompt": "a", "json_schema": {"type": "what"}}'),
    (C, b'{"prompt": "' + b"long " * 2000 + b'"}'),
    (C, b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    (H, b'{"messages": []}'),
    (H, b'{"messages": "hi"}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "verbosity": "much"}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "function_call": "auto"}'),
    ("/completion", b'{"prompt": "a", "n_probs": -1}'),
    ("/completion", b'{"prompt": "a", "n_predict": 2, "stream": true, "response_fields": [1]}'),
    ("/infill", b'{"input_prefix": "a", "input_suffix": 1}'),
    (
        H,
        b'{"messages": [{"role": "assistant", "content": "x"}], "add_generation_prompt": true,'
        b' "continue_final_message": true}',
    ),
    ("/v1/rerank", b'{"query": "a", "documents": ["b"]}'),
    ("/apply-template", b'{"messages": []}'),
    (H, b'{"messages": [{"content": "x"}]}'),
    (H, b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "tools": 1}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"a": 1}]}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": "f"}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "x"}}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tools": []}}'),
    ("/v1/embeddings", b'{"input": []}'),
    ("/v1/embeddings", b'{"input": [99999999]}'),
    ("/v1/embeddings", b'{"input": "a", "truncate_prompt_tokens": -2}'),
    ("/v1/embeddings", b'{"input": "a", "prompt_name": "qurey"}'),
    ("/v1/embeddings", b'{"input": "a", "input_type": "side"}'),
    ("/v1/embeddings", b'{"input": "a", "input_type": ["query"]}'),
    ("/v1/embeddings", b'{"input": "a", "prompt_name": {}}'),
    ("/v1/responses", b'{"input": "a", "metadata": {"a": 1e999}}'),
    (
        H,
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f"}}],'
        b' "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": []}, {"function": 1}]}}',
    ),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "truncate_prompt_tokens": 3}'),
    (H, b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "custom", "custom": {"name": "a"}}]}'),
    (C, b'{"prompt": "a", "json_schema": [1]}'),
    (C, b'{"prompt": "a", "stop": "' + b"s" * 257 + b'"}'),
    (C, b'{"prompt": "a", "stop": ' + json.dumps(["s"] * 17).encode() + b"}"),
    (C, b'{"prompt": "a", "samplers": ["min_p", "top_k"]}'),
    (C, b'{"prompt": "a", "structured_outputs": {"jsn": {}}}'),
    (C, b'{"prompt": "a", "lora": [{"id": 0, "scale": 1}]}'),
    (C, b'{"prompt": "a", "repetition_penalty": 1.5, "repeat_penalty": 1.1}'),
    (C, b'{"prompt": "a", "best_of": 1, "n": 2}'),
    (C, b'{"prompt": "a", "web_search_options": {}}'),
    ("/v1/embeddings", b'{"input": "a", "dimensions": 100000}'),
    ("/tokenize", b'{"content": 3}'),
    ("/detokenize", b'{"tokens": [true, "a"]}'),
    ("/detokenize", b'{"tokens": [-1]}'),
]


@pytest.mark.parametrize("stream", [b"", b'"stream": true, '])
@pytest.mark.parametrize(("path", "body"), BAD, ids=range(len(BAD)))
def test_bad_bodies(server: Server, path: str, body: bytes, stream: bytes) -> None:
    """Each is a 400 in OpenAI's form, streamed or not; none a 500."""
    if stream and path in (C, H) and body.startswith(b'{"'):
        body = b"{" + stream + body[1:]
    status, answer = server.send("POST", path, body)
    assert status == 400, answer
    error = json.loads(answer)["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = re.findall(
    r"\w+",
    """temperature top_p top_k min_p n stop seed logprobs top_logprobs logit_bias frequency_penalty stream tools
    tool_choice response_format stream_options model messages prompt input user json_schema regex choices grammar lark
    mirostat dry_breakers overflow keep timeout chat_template_kwargs documents modalities best_of encoding_format
    dimensions continue_final_message reasoning_effort max_completion_tokens tokens content""",
)
PATHS = st.sampled_from([C, H, "/v1/embeddings", "/tokenize", "/detokenize"])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), sound=st.booleans())
def test_survives_any_body(server: Server, path: str, fields: dict[str, Any], sound: bool) -> None:
    """Bodies of right names with any values are answered, or refused with a 4xx; never a 5xx, and it goes on."""
    base = {C: {"prompt": "a"}, H: {"messages": MESSAGES}, "/v1/embeddings": {"input": "a"}}.get(path, {})
    body = {**(base if sound else {}), **fields}
    if path in (C, H):
        body["max_tokens"] = 2
    status, answer = server.send("POST", path, json.dumps(body).encode())
    assert status < 500, (body, answer)


def test_alive_after_all(server: Server) -> None:
    """After all of the above nothing is left running, nothing failed, and it answers."""
    server.settled()
    assert server.metric("failed_total") == 0
    assert server.post(C, prompt="a", max_tokens=1)[0] == 200
