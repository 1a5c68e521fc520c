"""What hostile clients send: requests that are none, that mean two things, bodies made to cost."""

from __future__ import annotations

import gzip
import json

from .server_process import C, H

BODY = json.dumps({"prompt": "the cat", "max_tokens": 1}).encode()
_JSON = b"Host: x\r\nContent-Type: application/json\r\n"
HEAD = f"POST {C} HTTP/1.1\r\n".encode() + _JSON
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def post(path: str, body: bytes, *headers: bytes) -> bytes:
    """A whole request, after which the server closes."""
    more = b"".join(header + b"\r\n" for header in headers)
    length = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return f"POST {path} HTTP/1.1\r\n".encode() + _JSON + more + length + body


SOUND = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # TLS to a plain port
    b"\x00" * 1000, b"GET /no HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\r\n" * 500, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    HEAD.replace(b"Host: x", b"Host: x\r\nHost: y") + b"\r\n",
]  # fmt: skip
HUGE_HEADS = [
    b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]

# a proxy may end the first request elsewhere than the server: GET /health hidden in it must not be answered
_FIVE = b"0\r\n\r\n" + HEALTH
SMUGGLED = [
    HEAD + line + b"\r\n\r\n" + _FIVE
    for line in (
        b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Content-Length : 5", b"Content-Length: +5",
        b"Content-Length: 0x5", b"Content-Length: 5, 6", b"Content-Length: 5 5", b"Content-Length: \xa05",
        b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding\r\n: chunked", b"X: a\nTransfer-Encoding: chunked",
        b" Transfer-Encoding: chunked", b"X: a\x00\r\nContent-Length: 5", b"X: a\nY: b", b"X: a\rContent-Length: 5",
    )
]  # fmt: skip

_TEXT = json.dumps({"prompt": "é", "max_tokens": 1}, ensure_ascii=False)
ENCODINGS = [
    post(C, _TEXT.encode("latin-1")), post(C, _TEXT.encode("utf-16")), post(C, _TEXT.encode("utf-32-le")),
    post(C, b"\xc3\x28" * 50), post(C, BODY.replace(b"the", b"\xed\xa0\x80")),
    post(C, gzip.compress(BODY), b"Content-Encoding: gzip"), post(C, gzip.compress(bytes(10 << 20))),
    post(C, BODY.replace(b"the", b"\x00")), post(C, b'{"prompt": "\\ud800"'),
    post(C, BODY).replace(b"application/json", b"text/plain; charset=utf-7"),
]  # fmt: skip

CHUNK_BOMBS = [
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 200_000,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a" * 200_000 + b"\r\n \r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"FFFFF\r\n" + b" " * 0xFFFFF + b"\r\n") * 10,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
]


def megabytes(size: int = 1 << 20) -> dict[str, tuple[str, bytes]]:
    """Paths and JSON bodies of nearly `size` bytes, each made to cost as much as it can."""

    def c(**fields: object) -> tuple[str, bytes]:
        return C, json.dumps({"max_tokens": 1, **fields}).encode()

    def h(**fields: object) -> tuple[str, bytes]:
        return H, json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **fields}).encode()

    n = size // 100
    wide = {f"p{i:06}": {"type": "string", "maxLength": i % 50, "minLength": 1} for i in range(size * 3 // 200)}
    tool = {"type": "object", "properties": {"a": {"enum": [str(i) for i in range(20)]}}}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": tool}} for i in range(size // 280)]
    return {
        "nests": (C, b'{"prompt": ' + b"[" * (size // 2) + b"]" * (size // 2) + b"}"),
        "nested objects": (C, b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6)),
        "empty lists": (C, b'{"prompt": [' + b"[]," * (size // 3) + b"[]]}"),
        "many fields": (C, b'{"prompt": "x"' + b"".join(b', "k%07d": 1' % i for i in range(size // 15)) + b"}"),
        "one digit after another": (C, b'{"prompt": "x", "seed": ' + b"9" * size + b"}"),
        "escapes": (C, b'{"prompt": "' + b"\\u00e9" * (size // 6) + b'"}'),
        "token ids": c(prompt=[1] * (size // 3)),
        "prompts": c(prompt=["x"] * (size // 5)),
        "a long text": c(prompt="the cat " * (size // 8)),
        "one long word": c(prompt="a" * size),
        "stops": c(prompt="x", stop=["x" * 10] * (size // 14)),
        "logit_bias": c(prompt="x", logit_bias={str(i): 1 for i in range(size // 12)}),
        "choices": c(prompt="x", choices=[f"choice {i}" for i in range(size // 18)]),
        "regex": c(prompt="x", regex="(a|b)*" * (size // 6)),
        "a counted regex": c(prompt="x", regex="(a{1,1000}){1,1000}" * (size // 20)),
        "lark": c(prompt="x", lark="start: " + " | ".join(f'"a{i}"' for i in range(size // 12))),
        "GBNF": c(prompt="x", grammar="root ::= " + "( " * (size // 2)),
        "GBNF of rules": c(prompt="x", grammar="\n".join(f"r{i} ::= r{i + 1}" for i in range(size // 20))),
        "wide schema": h(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {
            "type": "object", "properties": wide, "required": list(wide)}}}),
        "alternatives": c(prompt="x", json_schema={"anyOf": [{"const": f"v{i:06}"} for i in range(n * 4)]}),
        "references": c(prompt="x", json_schema={"$ref": "#/$defs/A0", "$defs": {
            f"A{i}": {"allOf": [{"$ref": f"#/$defs/A{i + 1}"}] * 2} for i in range(n)}}),
        "patterns": c(prompt="x", json_schema={"type": "object", "patternProperties": {
            f"^(a|b{i})*$": {} for i in range(size // 22)}}),
        "tools": h(tools=tools, tool_choice="required"),
        "messages": h(messages=[{"role": "user", "content": "x"}] * (size // 36)),
        "roles": h(messages=[{"role": "r" * (size - 100), "content": "x"}]),
        "template variables": h(chat_template_kwargs={f"v{i}": "x" * 20 for i in range(size // 36)}),
        "to be tokenized": ("/tokenize", b'{"content": "' + b"ab " * (size // 3) + b'", "with_pieces": true}'),
        "to be detokenized": ("/detokenize", b'{"tokens": [' + b"1," * (size // 2) + b"1]}"),
    }  # fmt: skip
