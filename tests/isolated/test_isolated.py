"""`Llama(…, isolate=True)`: the answers of the same process, and a child whose death is an exception.

`--hypothesis-profile=long` kills a hundred children instead of ten.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from llcuda_ffi import AsyncLlama, Llama
from llcuda_ffi.engine.results import Completion
from llcuda_ffi.errors import (
    BackendFailure,
    Cancelled,
    ClosedError,
    ContextOverflow,
    InvalidRequest,
    LlcudaError,
    ModelNotFound,
)
from llcuda_ffi.isolated import child
from llcuda_ffi.isolated.channel import Channel, ChannelClosed
from llcuda_ffi.isolated.engine import RemoteEngine
from llcuda_ffi.isolated.wire import back, error_back, plain

from ..support.server_process import Server
from ..support.tiny_model import make_tiny_llama

DEATHS = 100 if settings.default is not None and settings.default.max_examples > 100 else 10
SETTINGS = {"n_ctx": 128, "n_parallel": 4, "n_threads": 1, "device": "cpu"}
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolated") / "tiny.gguf"
    make_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def plain_llm(tiny: Path) -> Iterator[Llama]:
    """The same in this process."""
    with Llama(tiny, **SETTINGS) as llm:  # type: ignore[arg-type]
        yield llm


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[Llama]:
    with Llama(tiny, isolate=True, **SETTINGS) as llm:  # type: ignore[arg-type]
        yield llm


def _engine(llm: Llama) -> RemoteEngine:
    assert isinstance(llm.engine, RemoteEngine)
    return llm.engine


def _bare(done: Completion) -> dict[str, object]:
    """Without what depends on the clock and on what was asked before."""
    return {k: v for k, v in done.to_dict().items() if k not in ("timings", "usage")}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"logprobs": 2, "stop": ["e"]},
        {"prompt_logprobs": 1, "echo": True},
        {"temperature": 0.9, "seed": 5, "n": 3},
        {"regex": "[a-c]{3}x", "ignore_eos": False},
        {"logit_bias": {65: 5.0, 66: float("-inf")}, "max_tokens": 3},
    ],
    ids=str,
)
def test_the_same_answers(llm: Llama, plain_llm: Llama, asked: dict[str, object]) -> None:
    """Whole and streamed, with every field of the result, as in this process."""
    for prompt in ("the quick brown", [5, 6, 7]):
        ours = plain_llm.generate(prompt, **{**GREEDY, **asked})
        theirs = llm.generate(prompt, **{**GREEDY, **asked})
        for one, other in zip(*(x if isinstance(x, list) else [x] for x in (ours, theirs)), strict=True):
            assert _bare(one) == _bare(other)
        chunks = list(llm.stream(prompt, **{**GREEDY, **asked}))
        last = [c.completion for c in chunks if c.completion is not None]
        assert sorted(c.text for c in last) == sorted(c.text for c in (ours if isinstance(ours, list) else [ours]))
        for done in last:
            assert "".join(c.text for c in chunks if c.index == done.index) == done.text


def test_values_of_types_are_made_here(llm: Llama, plain_llm: Llama) -> None:
    """A type of Python is sent as its schema; the value is read in this process."""
    pytest.importorskip("llguidance")
    asked = {**GREEDY, "json_schema": bool, "ignore_eos": False}
    assert llm.generate("x", **asked).parsed is plain_llm.generate("x", **asked).parsed
    assert isinstance(llm.generate("x", **asked).parsed, bool)


def test_chats(llm: Llama, plain_llm: Llama) -> None:
    """chat and chat_stream give what they give in one process."""
    messages = [{"role": "user", "content": "the fox"}]
    whole = plain_llm.chat(messages, **GREEDY).text
    assert llm.chat(messages, **GREEDY).text == whole
    assert "".join(c.text for c in llm.chat_stream(messages, **GREEDY)) == whole


def test_errors_and_settings(llm: Llama, tiny: Path, tmp_path: Path) -> None:
    """What is refused is refused with the same exceptions; what cannot leave the process is named."""
    with pytest.raises(ContextOverflow):
        llm.generate("a", max_tokens=4000)
    with pytest.raises(InvalidRequest, match="plain data"):
        Llama(tiny, isolate=True, progress=print)
    with pytest.raises(InvalidRequest, match="path or name"):
        Llama(llm.model, isolate=True)
    with pytest.raises(ModelNotFound):
        Llama(tmp_path / "none.gguf", isolate=True)
    with pytest.raises(InvalidRequest, match="n_contexts"):
        Llama(tiny, isolate=True, n_contexts=99)


def test_streams_that_go_on(llm: Llama, plain_llm: Llama) -> None:
    """After chunks of this process, or of another one: the same as there."""
    settings: dict[str, object] = {**GREEDY, "temperature": 1.0, "seed": 3, "n": 2, "logprobs": 0}
    first = list(plain_llm.stream("the fox", **settings))  # type: ignore[arg-type]
    for begun in (first[:7], [chunk for chunk in first if chunk.index], first):
        rest = list(llm.stream("the fox", **settings, begun=begun))  # type: ignore[arg-type]
        for i in range(2):
            tokens = [[t for c in chunks if c.index == i for t in c.token_ids] for chunks in (first, [*begun, *rest])]
            assert tokens[0] == tokens[1]
            ends = [c.completion for c in [*begun, *rest] if c.index == i and c.completion is not None]
            assert [done.token_ids for done in ends] == [tokens[0]]
    assert llm.engine.idle


def test_metrics_and_states(llm: Llama, tmp_path: Path) -> None:
    """Counters and saved prefixes are the child's."""
    before = llm.metrics().requests
    llm.generate("the lazy dog", **GREEDY)
    assert llm.metrics().requests == before + 1
    saved = llm.save_state(tmp_path / "state")
    assert saved > 0
    llm.clear_cache()
    assert llm.load_state(tmp_path / "state") == saved
    with pytest.raises(InvalidRequest):
        llm.load_state(tmp_path / "none")


def test_cancelled_streams_free_their_slots(llm: Llama) -> None:
    """Leaving a stream ends the request in the child."""
    for _ in range(8):
        for _ in llm.stream("the", max_tokens=100, ignore_eos=True):
            break
    assert llm.generate("the", **GREEDY).finish_reason == "length"
    assert llm.metrics().running == 0


def test_async(tiny: Path) -> None:
    """AsyncLlama: many at once, a cancelled task, a death in the middle, close while requests run."""

    async def main() -> None:
        llm = await AsyncLlama.load(tiny, isolate=True, **SETTINGS)
        done = await asyncio.gather(*(llm.generate("the fox", **GREEDY) for _ in range(16)))
        assert len({one.text for one in done}) == 1
        task = asyncio.create_task(llm.generate("the", max_tokens=110, ignore_eos=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = _engine(llm.llama).pid
        assert pid is not None
        tasks = [asyncio.create_task(llm.generate("the", max_tokens=110, ignore_eos=True)) for _ in range(8)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGSTOP)  # so that none can be done before
        await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(failed, BackendFailure)
        assert (await llm.generate("the fox", **GREEDY)).text == done[0].text
        last = asyncio.create_task(llm.generate("the", max_tokens=110, ignore_eos=True))
        await asyncio.sleep(0)
        await asyncio.to_thread(llm.close)
        assert isinstance((await asyncio.gather(last, return_exceptions=True))[0], (Cancelled, Completion))

    asyncio.run(main())


def _children() -> set[str]:
    """Child processes of this one, dead ones that nobody waited for included."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(place.parent.name)
    return found


def _kill_under_load(llm: Llama, deaths: int) -> list[str | BaseException]:
    """What six threads got that asked all the time, while the child was killed so many times."""
    r, remote, over = random.Random(1), _engine(llm), threading.Event()
    answers: list[str | BaseException] = []

    def ask(stream: bool) -> None:
        while not over.is_set():
            try:
                if stream:
                    answers.append("".join(c.text for c in llm.stream("the quick", **GREEDY)))
                else:
                    answers.append(llm.generate("the quick", **GREEDY).text)
            except LlcudaError as error:
                answers.append(error)

    askers = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(6)]
    for asker in askers:
        asker.start()
    for _ in range(deaths):
        time.sleep(r.uniform(0.0, 1.0))  # at any moment: while it loads, computes or answers
        while (pid := remote.pid) is None:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        while remote.pid == pid:
            time.sleep(0.001)
    over.set()
    for asker in askers:
        asker.join(60)
        assert not asker.is_alive(), "a request got no answer"
    return answers


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what is open in /proc")
def test_killed_at_random_under_load(tiny: Path, plain_llm: Llama) -> None:
    """Every request gets an answer, right or BackendFailure; no zombie, no descriptor and no thread is left."""
    right = plain_llm.generate("the quick", **GREEDY).text
    Llama(tiny, isolate=True, **SETTINGS).close()  # type: ignore[arg-type]  # it may try the file, by a child that stays
    children, threads, descriptors = _children(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    with Llama(tiny, isolate=True, **SETTINGS) as llm:  # type: ignore[arg-type]
        answers = _kill_under_load(llm, DEATHS)
        assert llm.generate("the quick", **GREEDY).text == right
        assert _engine(llm).deaths == DEATHS
    failed = [a for a in answers if isinstance(a, BaseException)]
    assert failed
    assert all(isinstance(error, BackendFailure) for error in failed), failed
    assert {a for a in answers if isinstance(a, str)} <= {right}
    gc.collect()
    assert _children() <= children
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads


def test_a_child_that_cannot_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends before it answers is an exception with its last words; nothing of it is left."""
    monkeypatch.setattr(child, "MODULE", "llcuda_ffi.no_such_module")
    with pytest.raises(BackendFailure, match=r"status 1.*no_such_module"):
        Llama(tiny, isolate=True, device="cpu")


def test_used_after_close(tiny: Path) -> None:
    """As any Llama."""
    llm = Llama(tiny, isolate=True, **SETTINGS)  # type: ignore[arg-type]
    pid = _engine(llm).pid
    llm.close()
    llm.close()
    with pytest.raises(ClosedError):
        llm.generate("a")
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00\x00\x02[}",
        b"\x7f\xff\xff\xff",
        b"\x00\x00\x00\x04null",
        b"\x00\x00\x00\x02\xff\xff",
        b"\x00\x01\x00\x00" + b"[" * 65536,
    ],
    ids=repr,
)
def test_what_is_no_message_ends_the_connection(raw: bytes) -> None:
    """Bytes from a child that was taken over are data: they end the connection, nothing else."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, plain)
    theirs.sendall(raw)
    theirs.close()
    with pytest.raises(ChannelClosed):
        list(channel.messages())
    channel.close()


def test_only_known_kinds_are_made() -> None:
    """A name in a message makes no object of a class that is no result or setting."""
    for name in ("Llama", "Popen", "object", "type"):
        with pytest.raises(KeyError):
            back({"": name})
    assert back(json.loads(json.dumps(plain({1: b"\xff", "a": (1, None)})))) == {1: b"\xff", "a": [1, None]}
    assert type(error_back(["SystemExit", "x"])) is BackendFailure
    assert type(error_back(["InvalidRequest", "x"])) is InvalidRequest
    with pytest.raises(InvalidRequest, match="plain data"):
        plain(object())


def test_serve_isolated(tiny: Path, tmp_path: Path) -> None:
    """`serve --isolate`: a request that the death catches is answered with an error, the next one is served."""
    server = Server(tmp_path / "log", tiny, "--isolate", "--parallel", 4, "-c", 128, "--alias", "tiny")
    ask = json.dumps({"model": "tiny", "prompt": "the", "max_tokens": 4, "temperature": 0}).encode()
    assert server.send("POST", "/v1/completions", ask)[0] == 200
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGKILL)
    status, body = server.send("POST", "/v1/completions", ask)
    assert status in (200, 500, 503), body
    assert server.send("POST", "/v1/completions", ask)[0] == 200
    assert server.stop() == 0
