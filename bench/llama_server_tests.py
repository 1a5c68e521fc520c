"""llama.cpp's own server tests against `llcuda-ffi serve`, its options and models mapped.

    python bench/llama_server_tests.py TREE REPORT [pytest's arguments]

TREE is an unpacked llama.cpp (llama-cpp-python's sdist has one in vendor/llama.cpp). Its tests are copied to a
temporary folder, never here. Where they start llama-server, `llcuda-ffi serve` is forked with the options mapped. The
models that they fetch from a hub are replaced: MiniLM for bge-small, files of random weights for the others. So what a
model says, and how many tokens a text has, is not compared (`_RELAXED`); everything else is. REPORT gets a line for
each test: outcome, name, and why it failed.

Needs pytest, requests, filelock, openai, and this repository's tests/ for the small files.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# what a test expects of the text or of its number of tokens → what holds for any model
_COUNT = r"\d+ \* \d+|\d+|n_prompt|n_cache|n_tokens"
_RELAXED = (
    (rf"(\[[\"'](?:prompt_n|prompt_tokens|cached_tokens|cache_n)[\"']\]) == (?:{_COUNT})\b", r"\1 >= 0"),
    (r"(\[\"(?:predicted_n|completion_tokens)\"\]) == n_predicted\b", r"\1 >= 1"),
    (r"dict\(response\.headers\)", "response.headers"),  # names of headers have no case
    (r"\"/completions\"", '"/completion"'),  # without /v1 it is OpenAI's here too
    (r"((?:most|least)_relevant\[\"index\"\]) == \d", r"\1 >= 0"),
    (r"(system_fingerprint(?:\"\])?\.startswith)\(\"b\"\)", r"\1('')"),
)

_MODELS = {
    "ggml-org/test-model-stories260K": "story",
    "ggml-org/test-model-stories260K-infill": "infill",
    "ggml-org/models/bert-bge-small/ggml-model-f16.gguf": "embedding",
    "ggml-org/models/jina-reranker-v1-tiny-en/ggml-model-f16.gguf": "reranker",
    "ggml-org/models/tinyllamas/split/stories15M-q8_0-00001-of-00003.gguf": "split",
    "ggml-org/stories15M_MOE/stories15M_MOE-F16.gguf": "story",
    "ggml-org/tinygemma3-GGUF:Q8_0": "seer",
}

# llama-server's option → ours, with a value
_VALUES = {
    "--port": "--port",
    "--host": "--host",
    "--ctx-size": "--ctx",
    "--parallel": "--parallel",
    "--batch-size": "--batch",
    "--ubatch-size": "--ubatch",
    "--threads": "--threads",
    "--api-key": "--api-key",
    "--models-dir": "--models-dir",
    "--chat-template": "--chat-template",
    "--chat-template-file": "--chat-template",
    "--cors-origins": "--cors-origin",
    "-ctk": "--kv-type",
    "--sleep-idle-seconds": "--ttl",
}
# and what says how every request is answered that does not say so itself
_DEFAULTS = {"--temp": "temperature", "--seed": "seed", "--n-predict": "max_tokens"}
# ours without being asked, or nothing that a client sees
_FLAGS = {
    "--offline", "--cont-batching", "--embedding", "--reranking", "--metrics", "--kv-unified", "--swa-full", "--slots",
    "--verbose", "--jinja", "--no-cache-idle-slots", "--no-mmproj",
}  # fmt: skip
_OTHER_FLAGS = {"--no-ui": ["--no-ui"], "--context-shift": ["--default", "overflow=shift"]}
_IGNORED = {
    "-ctv",
    "--pooling",
    "--cache-ram",
    "--n-gpu-layers",
    "--reasoning-format",
    "--media-path",
    "--spec-draft-n-min",
    "--spec-type",
    "--spec-draft-n-max",
}


def arguments_of(given: Sequence[str], models: Mapping[str, str]) -> list[str]:
    """The arguments of `llcuda-ffi serve` for those of llama-server.

    Raises:
        SystemExit: one that has no counterpart.
    """
    out: list[str] = []
    repo = file = alias = ""
    slots, ctx = 1, 0
    rest = iter(given)
    for option in rest:
        if option in _FLAGS:
            continue
        if option in ("--no-slots", "--no-jinja"):
            continue
        if option in _OTHER_FLAGS:
            out += _OTHER_FLAGS[option]
            continue
        value = next(rest, "")
        if option == "--hf-repo":
            repo = value
        elif option == "--hf-file":
            file = value
        elif option == "--model":
            out.insert(0, value)
        elif option == "--alias":
            alias = value
        elif option == "--parallel":
            slots = int(value)
        elif option == "--ctx-size":
            ctx = int(value)
        elif option == "-fa":
            out += ["--flash-attn", {"on": "enabled", "off": "disabled"}.get(value, "auto")]
        elif option == "--reasoning":
            out += ["--chat-template-kwargs", json.dumps({"enable_thinking": value != "off"})]
        elif option == "--lora":
            out += ["--lora", f"{Path(value).stem}={models['lora']}"]
        elif option == "--model-draft":
            out += ["--draft", models["story"]]
        elif option in _DEFAULTS:
            if value != "-1":
                out += ["--default", f"{_DEFAULTS[option]}={value}"]
        elif option in _VALUES:
            out += [_VALUES[option], value]
        elif option not in _IGNORED:
            raise SystemExit(f"no counterpart of {option} {value}")
    if not repo and out[:1] != ["--models-dir"] and "--model" not in given:
        out.insert(0, models["story"])  # a router of no models yet
    if repo:
        name = _MODELS[f"{repo}/{file}" if file else repo]
        out.insert(0, models[name])
        if name == "seer":
            out += ["--mmproj", models["eye"]]
    out += ["--parallel", str(slots)]
    if ctx and "--kv-unified" in given:
        out += ["--ctx", str(ctx), "--kv-cells", str(ctx)]
    elif ctx:  # llama-server divides it among the slots
        out += ["--ctx", str(ctx // slots)]
    for name in filter(None, alias.split(",")):
        out += ["--alias", name]
    return [*out, "--lenient"] if "embedding" not in alias else out


class ForkedServer:
    """A `llcuda-ffi serve` in a child of this process, which has imported everything already; as a subprocess.Popen."""

    models: Mapping[str, str] = {}

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the tests
            self._serve(command[1:], env)

    def _serve(self, options: Sequence[str], env: Mapping[str, str]) -> None:
        from llcuda_ffi.cli import main

        status = 1
        try:
            os.environ.update(env)
            log = os.open(Path("server.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = ["llcuda-ffi", "serve", *arguments_of(options, self.models)]
            if "--mmproj" in sys.argv:
                os.environ["LLCUDA_FFI_BUNDLE"] = "v0.6.0-cpu"  # has libmtmd
            print("as:", *sys.argv, flush=True)
            main()
            status = 0
        except SystemExit as error:
            print(error, flush=True)
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """The exit status."""
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.returncode or 0

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    terminate = kill


def _stand_ins(folder: Path) -> dict[str, str]:
    """Files for the models that the tests fetch."""
    import numpy as np

    from llcuda_ffi import lora
    from llcuda_ffi.conversion.bert import convert_bert
    from llcuda_ffi.hub import resolve
    from tests.lora.test_lora import peft_folder
    from tests.support.tiny_bert import write_tiny_bert
    from tests.support.tiny_model import split_tiny_llama, tiny_llama
    from tests.support.tiny_projector import make_tiny_projector, make_tiny_seer

    own = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True, "llama.context_length": 8192}
    marks = {f"tokenizer.ggml.fim_{name}_token_id": 5 + i for i, name in enumerate(("pre", "suf", "mid", "rep", "sep"))}
    for name, metadata in (("story", own), ("infill", {**own, **marks})):
        file = tiny_llama()
        file.metadata.update(metadata)
        ne, kind, raw = file.tensors["token_embd.weight"]
        rows = np.frombuffer(raw, np.float32).reshape(ne[::-1]).copy()
        rows[-1] = 0  # <|im_end|>: the middle of all logits, never among the likeliest
        file.tensors["token_embd.weight"] = (ne, kind, rows.tobytes())
        file.write(folder / f"{name}.gguf")
    make_tiny_seer(folder / "seer.gguf")
    make_tiny_projector(folder / "eye.gguf")
    convert_bert(write_tiny_bert(folder / "bert", head=True), folder / "reranker.gguf", "f32")
    lora.convert(peft_folder(folder / "peft"), folder / "story.gguf", folder / "lora.gguf")
    return {
        "story": str(folder / "story.gguf"),
        "infill": str(folder / "infill.gguf"),
        "embedding": str(resolve("all-minilm-l6-v2")),
        "reranker": str(folder / "reranker.gguf"),
        "split": str(split_tiny_llama(folder)),
        "seer": str(folder / "seer.gguf"),
        "lora": str(folder / "lora.gguf"),
        "eye": str(folder / "eye.gguf"),
    }


# a PNG of one pixel, for the pictures on the hub
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def _get(get: Any, url: str, **options: Any) -> Any:
    """requests.get, without the network."""
    if "//127.0.0.1" in url or "//[::1]" in url:
        return get(url, **options)
    return types.SimpleNamespace(content=base64.b64decode(_PNG), status_code=200, raise_for_status=lambda: None)


class Report:
    """A plugin of pytest that writes each outcome to a file as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A line for a test."""
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message.replace("\n", " ")[:300] if crash is not None else ""
            with self._path.open("a") as file:
                file.write(f"{report.outcome}\t{report.nodeid}\t{why}\n")


def main() -> int:
    """Run the tests; pytest's exit status."""
    tree, report = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    sys.path.insert(0, str(ROOT))
    import pytest
    import requests

    import llcuda_ffi.cli.serve
    import llcuda_ffi.server.run  # noqa: F401  # imported once, for all servers

    with tempfile.TemporaryDirectory(prefix="llama-server-tests-") as name:
        folder = Path(name, "tools/server/tests")
        shutil.copytree(tree / "tools/server/tests", folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(tree / "models/templates", Path(name, "models/templates"))
        (folder / "tmp").mkdir()
        for path in [folder / "utils.py", *(folder / "unit").glob("*.py")]:
            text = path.read_text()
            for pattern, relaxed in _RELAXED:
                text = re.sub(pattern, relaxed, text)
            path.write_text(text)
        ForkedServer.models = _stand_ins(Path(name))
        os.chdir(folder)
        os.environ.setdefault("PORT", "18180")
        sys.path.insert(0, str(folder))
        wget = types.ModuleType("wget")
        wget.download = lambda url, out: Path(out).touch()  # type: ignore[attr-defined]  # nothing is fetched
        sys.modules["wget"] = wget
        requests.get = functools.partial(_get, requests.get)
        import utils  # type: ignore[import-not-found]  # theirs

        utils.match_regex = lambda _, text: isinstance(text, str)
        utils.ServerPreset.load_all = staticmethod(lambda: None)
        utils.subprocess = types.SimpleNamespace(Popen=ForkedServer)
        options = ["-p", "no:cacheprovider", "-m", "not slow", "-q", "-c", "pytest.ini"]
        return int(pytest.main([*options, *sys.argv[3:]], plugins=[Report(report)]))


if __name__ == "__main__":
    sys.exit(main())
