"""llcuda's ServerManager over a real server process, and InferenceEngine as its client."""

from __future__ import annotations

import inspect
import json
import os
import socket
import urllib.request
from pathlib import Path

import pytest

from llcuda_ffi import llcuda
from llcuda_ffi.errors import InvalidRequest, LoadError, ModelNotFound


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_defaults_are_llcuda_s() -> None:
    """start_server has the original's names and defaults, in its order."""
    signature = inspect.signature(llcuda.ServerManager.start_server)
    given = {n: p.default for n, p in signature.parameters.items() if n not in ("self", "model_path")}
    assert given == {
        "port": 8090,
        "host": "127.0.0.1",
        "gpu_layers": 99,
        "ctx_size": 2048,
        "n_parallel": 1,
        "batch_size": 512,
        "ubatch_size": 128,
        "timeout": 60,
    }


def test_start_ask_restart_stop(smollm2: Path) -> None:
    """A server starts, answers, restarts as another process with the same settings, and stops."""
    port = _free_port()
    with llcuda.ServerManager() as manager:
        with pytest.raises(InvalidRequest, match="start_server"):
            manager.restart_server()
        assert not manager.stop_server()
        assert manager.start_server(smollm2, port=port, ctx_size=512)
        info = manager.get_server_info()
        assert info["running"]
        assert info["healthy"]
        assert info["url"] == f"http://127.0.0.1:{port}"
        assert info["ctx_size"] == 512
        body = json.dumps({"prompt": "Once", "max_tokens": 3}).encode()
        request = urllib.request.Request(info["url"] + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3

        _ask_through_an_engine(info["url"])

        other = llcuda.ServerManager()
        with pytest.raises(LoadError, match="another port"):
            other.start_server(smollm2, port=port)

        assert manager.restart_server()
        again = manager.get_server_info()
        assert again["pid"] != info["pid"]
        assert again["ctx_size"] == 512
        assert manager.stop_server()
        assert not manager.get_server_info()["running"]
    with pytest.raises(ProcessLookupError):
        os.kill(again["pid"], 0)


def _ask_through_an_engine(url: str) -> None:
    """InferenceEngine(server_url=…) gives what the engine in this process gives, streams, and loads nothing."""
    engine = llcuda.InferenceEngine(server_url=url)
    assert engine.is_loaded
    with pytest.raises(InvalidRequest, match="its own model"):
        engine.load_model("smollm2-135m")
    asked = {"max_tokens": 8, "temperature": 0.0}
    answer = engine.infer("Once upon a time", **asked)
    with llcuda.InferenceEngine() as own:
        own.load_model("smollm2-135m", ctx_size=512, silent=True)
        assert own.infer("Once upon a time", **asked).text == answer.text
    assert (answer.success, answer.tokens_generated) == (True, 8)
    assert answer.tokens_per_sec > 0
    pieces: list[str] = []
    assert engine.infer_stream("Once upon a time", pieces.append, 8, 0.0).text == answer.text == "".join(pieces)
    assert len(pieces) > 3
    assert [r.text for r in engine.batch_infer(["Once upon a time"] * 3, **asked)] == [answer.text] * 3
    assert engine.get_metrics()["latency"]["sample_count"] == 5
    bad = engine.infer("word " * 5000, max_tokens=4)
    assert not bad.success
    assert "context" in str(bad.error_message)
    gone = llcuda.InferenceEngine(server_url=f"http://127.0.0.1:{_free_port()}/v1")
    assert not gone.is_loaded
    assert "does not answer" in str(gone.infer("a").error_message)
    assert "cannot be sent" in str(gone.infer("a", logits_processors=[len]).error_message)
    for wrong in ("127.0.0.1:8090", "http://127.0.0.1:99999", "http://[::1", 8090):
        with pytest.raises(InvalidRequest, match="server_url"):
            llcuda.InferenceEngine(server_url=wrong)  # type: ignore[arg-type]


def test_loud_failures(smollm2: Path, tmp_path: Path) -> None:
    """No such model, a wrong setting, a file that is no model: each raises and leaves no process."""
    manager = llcuda.ServerManager()
    with pytest.raises(ModelNotFound):
        manager.start_server("no-such-model")
    for wrong in ({"n_parallel": 1000}, {"port": 99999}, {"port": "8090"}, {"host": None}, {"batch_size": "x"}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            manager.start_server(smollm2, **wrong)  # type: ignore[arg-type]
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(LoadError, match=r"status 1: error: .*x\.gguf"):
        manager.start_server(tmp_path / "x.gguf", port=_free_port())
    with pytest.raises(LoadError, match="did not answer"):
        manager.start_server(smollm2, port=_free_port(), timeout=0.01)
    assert not manager.get_server_info()["running"]
