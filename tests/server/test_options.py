"""What the command line says about all requests: defaults, a template and what it gets, addresses, the page."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from llcuda_ffi.cli.serve import command, isolates
from llcuda_ffi.hardware.gpu import survey

from ..support.server_process import MESSAGES, C, Server
from ..support.tiny_model import make_tiny_llama

TEMPLATE = "{{ 'think' if enable_thinking else 'plain' }}:{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with options."""
    folder = tmp_path_factory.mktemp("options")
    make_tiny_llama(folder / "tiny.gguf")
    (folder / "own.jinja").write_text(TEMPLATE)
    server = Server(
        folder / "log", folder / "tiny.gguf", "--default", "max_tokens=3", "--default", "ignore_eos=true", "--no-ui",
        "--chat-template", folder / "own.jinja", "--chat-template-kwargs", '{"enable_thinking": true}',
        "--host", "127.0.0.1,127.0.0.2", "--cors-origin", "localhost", "--parallel", 2,
    )  # fmt: skip
    yield server
    assert server.stop() == 0


def test_defaults_give_way(tuned: Server) -> None:
    """A setting holds for requests that do not name it; Anthropic's and OpenAI's own limits come before it."""
    assert tuned.post(C, prompt="the")[1]["usage"]["completion_tokens"] == 3
    assert tuned.post(C, prompt="the", max_tokens=5)[1]["usage"]["completion_tokens"] == 5
    assert tuned.post("/v1/messages", messages=MESSAGES, max_tokens=4)[1]["usage"]["output_tokens"] == 4
    assert tuned.post("/v1/responses", input="the")[1]["usage"]["output_tokens"] == 3
    assert tuned.post("/v1/responses", input="the", max_output_tokens=2)[1]["usage"]["output_tokens"] == 2


def test_template_and_what_it_gets(tuned: Server) -> None:
    """The file's template is rendered, with the variables of the command line where the request has none."""
    assert tuned.post("/apply-template", messages=MESSAGES)[1]["prompt"].startswith("think:")
    plain = {"chat_template_kwargs": {"enable_thinking": False}}
    assert tuned.post("/apply-template", messages=MESSAGES, **plain)[1]["prompt"].startswith("plain:")
    info = tuned.send("GET", "/tokenizer_info")[1]
    assert b"enable_thinking" in info


def test_addresses_page_and_origins(tuned: Server) -> None:
    """Every address answers at one port; the page is off; web pages of this machine are let in, others not."""
    other = http.client.HTTPConnection("127.0.0.2", tuned.port, timeout=30)
    other.request("GET", "/health")
    assert other.getresponse().status == 200
    other.close()
    assert tuned.send("GET", "/")[0] == 404
    for origin, let_in in (
        ("http://localhost:3000", True),
        ("http://[::1]", True),
        ("http://localhost.evil.org", False),
    ):
        assert ("access-control-allow-origin" in tuned.headers("/health", Origin=origin)) is let_in


@pytest.mark.parametrize(
    "given",
    [
        ["--default", "temprature=1"],
        ["--default", "top_p=7"],
        ["--chat-template-kwargs", "[1]"],
        ["--chat-template", "chatlm"],
    ],
)
def test_wrong_options(tmp_path: Path, given: list[str]) -> None:
    """A default that no request could have, variables that are no object, an unknown template: they end the command."""
    make_tiny_llama(tmp_path / "tiny.gguf")
    done = CliRunner().invoke(command, [str(tmp_path / "tiny.gguf"), "--port", "0", *given])
    assert done.exit_code != 0
    assert isinstance(done.exception, ValueError | TypeError)


def test_isolated_where_a_gpu_is() -> None:
    """The engine has a process of its own by default where a GPU may be used, and nowhere else."""
    assert not isolates("cpu")
    assert isolates("auto") == bool(survey().gpus)
