"""One completion, asked for in every way that there is: what llama/test_oracle.py compares."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from llcuda_ffi import AsyncLlama, Llama
from llcuda_ffi.engine.results import Chunk, Completion

WAYS = ["generate", "stream", "chat", "chat_stream"]
CALLERS = ["thread", "task", "server"]
Post = Callable[..., AsyncIterator[bytes]]


@dataclass
class Got:
    """What came back: a completion, and the pieces it came in.

    Attributes:
        token_ids, logprobs, parsed: None where the way does not tell; of `logprobs` the chosen tokens' only.
        calls: the names and arguments of tool calls.
        pieces: text, token ids and their log probabilities of each chunk of a stream.
        over: whether it was not left before its end.
    """

    text: str = ""
    token_ids: list[int] | None = None
    n_tokens: int | None = None
    logprobs: list[float] | None = None
    finish: str | None = None
    parsed: Any = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    pieces: list[tuple[str, list[int], list[Any] | None]] | None = None
    over: bool = True


def posting(app: Any) -> Post:
    """A POST to an ASGI application in this process: the parts of the body as they come; closed, the client leaves."""

    async def post(path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left, asked = asyncio.Event(), [json.dumps(body).encode()]

        async def receive() -> dict[str, Any]:
            if asked:
                return {"type": "http.request", "body": asked.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.put_nowait(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path}
        scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http"}
        scope |= {"headers": [(b"content-type", b"application/json")], "client": ("c", 1), "server": ("s", 1)}
        task = asyncio.ensure_future(app(scope, receive, send))
        task.add_done_callback(lambda _: sent.put_nowait(None))
        status = 0
        try:
            while (message := await sent.get()) is not None:
                status = message.get("status", status)
                if message.get("body"):
                    assert status == 200, (status, message["body"])
                    yield message["body"]
        finally:
            left.set()
            await task

    return post


def _of(done: Completion, chunks: list[Chunk] | None) -> Got:
    got = Got(done.text, done.token_ids, len(done.token_ids), None, done.finish_reason, done.parsed)
    got.logprobs = None if done.logprobs is None else [entry.logprob for entry in done.logprobs]
    got.pieces = None if chunks is None else [(c.text, c.token_ids, c.logprobs) for c in chunks]
    return got


def _of_chat(done: Any, i: int, chunks: list[Any] | None) -> Got:
    choice = done.choices[i]
    got = Got(choice.message.content or "", None, None, None, choice.finish_reason, choice.parsed)
    got.logprobs = None if choice.logprobs is None else [entry.logprob for entry in choice.logprobs]
    got.calls = [(call.name, call.arguments) for call in choice.message.tool_calls]
    if chunks is not None:
        got.pieces = [(c.content, c.token_ids, c.logprobs) for c in chunks]
        got.token_ids = [token for c in chunks for token in c.token_ids]
        deltas: dict[int, list[str]] = {}
        for call in (call for chunk in chunks for call in chunk.tool_calls):
            deltas.setdefault(call.index, [call.name or ""]).append(call.arguments)
        assert [(name, "".join(more)) for name, *more in deltas.values()] == got.calls
    return got


def _by_index(chunks: list[Any], n: int) -> list[list[Any]]:
    return [[chunk for chunk in chunks if chunk.index == i] for i in range(n)]


def _collected(chunks: list[Any], n: int, chat: bool) -> list[Got]:
    """The n answers that came in chunks; those of a stream that was left have no end."""
    found = []
    for i, own in enumerate(_by_index(chunks, n)):
        whole = own[-1].completion if own else None
        if whole is None:
            pieces = [(c.text, c.token_ids, c.logprobs) for c in own]
            found.append(Got("".join(piece for piece, _, _ in pieces), pieces=pieces, over=False))
        else:
            found.append(_of_chat(whole, i if len(whole.choices) > 1 else 0, own) if chat else _of(whole, own))
    return found


@dataclass
class Ask:
    """A completion to be asked for.

    Attributes:
        way: one of WAYS; `caller`: one of CALLERS.
        prompt: a text, or token ids where it is no chat.
        params: as of `generate`; options of `chat` among them.
        leave: leave a stream after so many chunks.
    """

    way: str
    caller: str
    prompt: Any
    params: dict[str, Any]
    leave: int | None = None

    @property
    def chat(self) -> bool:
        """Whether it is a conversation."""
        return self.way.startswith("chat")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """It."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def n(self) -> int:
        """How many answers."""
        return int(self.params.get("n", 1))

    async def run(self, led: Llama, other: AsyncLlama, post: Post, name: str) -> list[Got]:
        """The answers: `led` is asked by threads, `other` by tasks, `name` is the model's for the server."""
        if self.caller == "thread":
            return await asyncio.to_thread(self._in_thread, led)
        return await (self._awaited(other) if self.caller == "task" else self._served(post, name))

    def _in_thread(self, llm: Llama) -> list[Got]:
        if self.way == "generate":
            made: Any = llm.generate(self.prompt, **self.params)
            return [_of(done, None) for done in (made if isinstance(made, list) else [made])]
        if self.way == "chat":
            answer: Any = llm.chat(self.messages, **self.params)
            return [_of_chat(answer, i, None) for i in range(self.n)]
        stream: Any = (
            llm.chat_stream(self.messages, **self.params) if self.chat else llm.stream(self.prompt, **self.params)
        )
        chunks: list[Any] = []
        for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == self.leave:
                stream.close()
        return _collected(chunks, self.n, self.chat)

    async def _awaited(self, llm: AsyncLlama) -> list[Got]:
        if self.way == "generate":
            made: Any = await llm.generate(self.prompt, **self.params)
            return [_of(done, None) for done in (made if isinstance(made, list) else [made])]
        if self.way == "chat":
            answer: Any = await llm.chat(self.messages, **self.params)
            return [_of_chat(answer, i, None) for i in range(self.n)]
        stream: Any = (
            llm.chat_stream(self.messages, **self.params) if self.chat else llm.stream(self.prompt, **self.params)
        )
        chunks: list[Any] = []
        async for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == self.leave:
                await stream.aclose()
        return _collected(chunks, self.n, self.chat)

    async def _served(self, post: Post, name: str) -> list[Got]:
        body = {"model": name, **{k: v for k, v in self.params.items() if v is not None}}
        if self.chat:
            body["messages"] = self.messages
            if "logprobs" in body:
                body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        else:
            body["prompt"] = self.prompt
        path = "/v1/chat/completions" if self.chat else "/v1/completions"
        if not self.way.endswith("stream"):
            answer = json.loads(b"".join([part async for part in post(path, body)]))
            found = [self._choice([choice]) for choice in sorted(answer["choices"], key=lambda c: c["index"])]
            if self.n == 1:
                found[0].n_tokens = answer["usage"]["completion_tokens"]
            return found
        choices: list[list[dict[str, Any]]] = [[] for _ in range(self.n)]
        parts, count = post(path, {**body, "stream": True}), 0
        async for part in parts:
            for line in part.splitlines():
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    for choice in event["choices"]:
                        choices[choice["index"]].append(choice)
            count += 1
            if count == self.leave:
                await parts.aclose()  # type: ignore[attr-defined]
        return [self._choice(each, streamed=True) for each in choices]

    def _choice(self, choices: list[dict[str, Any]], *, streamed: bool = False) -> Got:
        """One answer of the server, in one piece or several."""
        got = Got(finish=choices[-1]["finish_reason"] if choices else None)
        got.over = got.finish is not None
        pieces, calls, logprobs = [], {}, []
        for choice in choices:
            said = choice.get("delta") or choice.get("message") or {}
            text = (said.get("content") if self.chat else choice["text"]) or ""
            told = choice.get("logprobs")
            if told is not None:
                logprobs += [e["logprob"] for e in told["content"]] if self.chat else told["token_logprobs"]
                if not self.chat:
                    assert len(told["tokens"]) == len(told["text_offset"]) == len(told["token_logprobs"])
            pieces.append((text, [], None))
            for at, call in enumerate(said.get("tool_calls") or ()):
                whole = calls.setdefault(call.get("index", at), ["", ""])
                whole[0] += call["function"].get("name") or ""
                whole[1] += call["function"]["arguments"]
        got.text = "".join(text for text, _, _ in pieces)
        got.calls = [(name, arguments) for name, arguments in calls.values()]
        got.logprobs = logprobs if self.params.get("logprobs") is not None else None
        got.pieces = pieces if streamed else None
        return got
