"""The commands, run as processes: text on stdout, notes on stderr, the exit codes, files of prompts that resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi.cli import main
from llcuda_ffi.cli.root import COMMANDS

from ..support.tiny_model import make_tiny_llama

MAIN = "from llcuda_ffi.cli import main; main()"
STORY = "Once upon a time"


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )


def refused(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The command failed with this code, said why, and showed no traceback; an error of ours is one line."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    if code == 1:
        assert text.startswith("error: "), text
        assert text.count("\n") == 1, text
    for word in words:
        assert word in text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads in milliseconds."""
    path = tmp_path_factory.mktemp("cli") / "tiny.gguf"
    make_tiny_llama(path)
    return path


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself."""
    monkeypatch.setattr(sys, "argv", ["llcuda-ffi", *([command] if command else []), "--help"])
    main()
    text = capsys.readouterr().out
    assert text.startswith("Usage: llcuda-ffi")
    assert "Examples:" in text
    if not command:
        assert all(f"\n  {name} " in text for name in COMMANDS)


def test_version() -> None:
    """--version prints the package's version."""
    from importlib.metadata import version

    done = run("--version")
    assert done.returncode == 0
    assert version("llcuda-ffi").encode() in done.stdout


def test_text_and_json(smollm2: Path) -> None:
    """The streamed text is the text of --json; stdout holds nothing else; the prompt may come from stdin."""
    options = ("-m", smollm2, "-n", 6, "-t", 0, "-c", 64)
    streamed = run("generate", STORY, *options)
    assert streamed.returncode == 0, streamed.stderr.decode()
    assert b"6 tokens" in streamed.stderr
    done = run("generate", "-", *options, "--json", stdin=STORY.encode())
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["text"] + "\n" == streamed.stdout.decode()
    assert result["finish_reason"] == "length"
    assert len(result["token_ids"]) == result["usage"]["completion_tokens"] == 6


def test_log_probabilities_of_a_prompt(tiny: Path, tmp_path: Path) -> None:
    """A line of --file may ask for log probabilities, also of its prompt."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": STORY, "max_tokens": 1, "prompt_logprobs": 1, "logprobs": 1}))
    done = run("generate", "-f", source, "-o", output, "-m", tiny, "-c", 64)
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(output.read_text())
    assert result["prompt_logprobs"][0] is None
    assert len(result["prompt_logprobs"]) == result["usage"]["prompt_tokens"]
    assert isinstance(result["logprobs"][0]["top_bytes"][0], list)


def test_results_into_a_device(tiny: Path, tmp_path: Path) -> None:
    """--output may be /dev/stdout or a pipe: nothing is read from it to go on after."""
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": STORY, "max_tokens": 1}))
    done = run("generate", "-f", source, "-o", "/dev/stdout", "-m", tiny, "-c", 64)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["prompt"] == STORY


def test_half_of_a_surrogate_pair(tiny: Path, tmp_path: Path) -> None:
    """A prompt that no UTF-8 can hold is answered, and its result is JSON all the same."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Once \\ud800", "max_tokens": 1}\n"Once"\n')
    done = run("generate", "-f", source, "-o", output, "-m", tiny, "-c", 64, "-n", 1)
    assert done.returncode == 0, done.stderr.decode()
    first, second = map(json.loads, output.read_bytes().splitlines())
    assert (first["prompt"], second["prompt"]) == ("Once \ud800", "Once")


def test_a_message_that_fails(tiny: Path) -> None:
    """A chat that reads a pipe says by its exit code that a message was not answered."""
    refused(run("chat", tiny, "--template", "nope", stdin=b"Hello\n"), 1, "nope")


def test_an_empty_name_of_a_model() -> None:
    """`-m "$UNSET"` is an error, not the default model."""
    refused(run("generate", STORY, "-m", ""), 1, "''")


def test_demo(smollm2: Path) -> None:
    """demo prints text, and one line of facts on stderr."""
    done = run("demo", "-n", 5)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()
    facts = [line for line in done.stderr.decode().splitlines() if "tokens/s" in line]
    assert len(facts) == 1
    for word in (smollm2.name, "bundle ", "CPU variant ", "5 tokens"):
        assert word in facts[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("generate",),
        ("generate", "a", "b"),
        ("generate", "a", "--max-tokens", "many"),
        ("generate", "a", "--nonsense"),
        ("generate", "a", "--file", __file__),
        ("generate", "--file", __file__),
        ("generate", "--file", "/no/such/file", "-o", "x"),
        ("generate", "--file", "/dev/null", "-o", "x"),  # a pipe would be read to its end when it is counted
        ("generate", "-", "--grammar", "/no/such/file"),
        ("embed", "/no/such/file", "x.npy"),  # before a model is fetched
    ],
)
def test_usage(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad usage is exit code 2, and the usage on stderr."""
    monkeypatch.setattr(sys, "argv", ["llcuda-ffi", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: ")
    assert "Error: " in said.err


def test_output_over_the_prompts(tmp_path: Path) -> None:
    """The file of prompts is never taken for the results."""
    source = tmp_path / "prompts"
    source.write_text('"a"\n"b"')
    refused(run("generate", "--file", source, "-o", source), 2, "itself")
    assert source.read_text() == '"a"\n"b"'


def test_errors(tiny: Path, tmp_path: Path) -> None:
    """An error is one line on stderr and exit code 1."""
    refused(run("generate", "a", "-m", tmp_path / "none.gguf"), 1, "none.gguf")
    refused(run("generate", "a", "-m", "nosuchmodel"), 1, "nosuchmodel")
    (tmp_path / "bad.gguf").write_bytes(b"no model" * 9)
    refused(run("generate", "a", "-m", tmp_path / "bad.gguf"), 1, "bad.gguf")
    refused(run("generate", "a", "-m", tiny, "--temperature", "nan"), 1, "temperature")
    refused(run("generate", "", "-m", tiny), 1, "empty")
    refused(run("generate", "a", "-m", tiny, "--device", "tpu"), 1, "tpu")
    (tmp_path / "in").write_text('"a"\n')
    refused(run("generate", "-m", tiny, "-f", tmp_path / "in", "-o", tmp_path / "no" / "out"), 1, "out")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    refused(run("generate", "a", "-m", tiny, "--grammar", tmp_path / "binary"), 1, "UTF-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bare(results: list[dict[str, Any]]) -> list[object]:
    """Without what differs from run to run."""
    return [r.get("error") or (r["text"], r["token_ids"], r["finish_reason"]) for r in results]


def test_file(smollm2: Path, tmp_path: Path) -> None:
    """Results in the order of the prompts; a bad line is an error in its place; a run that was cut in the middle of
    a line ends with the same file as one that was not."""
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts: list[Any] = [
        STORY,
        {"prompt": "The capital of France is", "max_tokens": 3},
        "no json",
        {"prompt": "word " * 300},
        {"prompt": STORY, "nonsense": 1},
        {"text": STORY},
        {"prompt": STORY, "max_tokens": 0},
        "deep",
        {"prompt": "One, two, three,", "max_tokens": 5},
    ]
    raw = {"no json": "{no json", "deep": "[" * 100_000}
    source.write_text("\n\n".join(raw[p] if p in ("no json", "deep") else json.dumps(p) for p in prompts) + "\n")
    options = ("generate", "-m", smollm2, "-c", 64, "-n", 6, "-t", 0, "--parallel", 2, "-f", source, "-o", out)
    done = run(*options)
    assert done.returncode == 1, done.stderr.decode()
    assert b"9 prompts, 5 failed" in done.stderr
    assert done.stdout == b""
    whole = lines(out)
    assert len(whole) == len(prompts)
    assert ["error" in r for r in whole] == [False, False, True, True, True, True, False, True, False]
    for i, word in ((2, "JSON"), (3, "64"), (4, "nonsense"), (5, "prompt"), (7, "JSON")):
        assert word in whole[i]["error"], whole[i]
    assert [len(r.get("token_ids", ())) for r in whole] == [6, 3, 0, 0, 0, 0, 0, 0, 5]
    assert "Paris" in whole[1]["text"]

    complete = out.read_bytes()
    for cut in (len(complete) // 2, 10):
        out.write_bytes(complete[:cut])
        done = run(*options)
        assert done.returncode == 1, done.stderr.decode()
        assert bare(lines(out)) == bare(whole)
    assert run(*options).returncode == 0  # nothing left to do
    assert bare(lines(out)) == bare(whole)
    source.write_text('"a"\n')
    refused(run(*options), 1, "do not belong together")


def test_file_to_standard_output(tiny: Path, tmp_path: Path) -> None:
    """`-o -` writes the results to standard output, and no file called "-"."""
    source = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a", "ignore_eos": True}, {"prompt": "b", "ignore_eos": True, "max_tokens": 2}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "generate", "-m", str(tiny), "-n", "3", "-f", str(source), "-o", "-"],
        cwd=tmp_path, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert [len(json.loads(line)["token_ids"]) for line in done.stdout.splitlines()] == [3, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_schema_and_adapters(smollm2: Path, tmp_path: Path) -> None:
    """--json-schema as text or file holds; one that is none, and an adapter that is missing, are told."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), tmp_path / "schema.json"):
        done = run("generate", "JSON:", "-m", smollm2, "-n", 40, "-t", 0, "-c", 128, "--json-schema", given)
        assert isinstance(json.loads(done.stdout)["a"], int), done.stdout
    refused(run("generate", "a", "--json-schema", "{nothing"), 2, "no JSON")
    refused(run("generate", "a", "--json-schema", tmp_path / "none"), 2, "none")
    refused(run("generate", "a", "-m", smollm2, "-c", 64, "--lora", tmp_path / "a.gguf:0.5"), 1, "a.gguf")
    refused(run("generate", "a", "-m", smollm2, "--lora", f"{tmp_path}/a.gguf:x"), 2, "no scale")


def test_errors_name_flags(tiny: Path) -> None:
    """What Python calls n_ctx or kv_type is --ctx and --kv-type to who types it."""
    refused(run("generate", "a", "-m", tiny, "--kv-type", "q9"), 1, "--kv-type must be")
    refused(run("generate", "word " * 200, "-m", tiny, "-c", 32), 1, "--ctx")
    refused(run("chat", "a", "-m", "b"), 2, "two models")


def test_blank_answer(smollm2: Path) -> None:
    """An answer of nothing says why."""
    done = run(
        "generate", "a", "-m", smollm2, "-c", 64, "-n", 4, "-t", 0, "--json-schema", '{"const": " "}', "--stop", '"'
    )
    assert done.stdout.strip() == b""
    assert b"llcuda-ffi chat" in done.stderr


def test_bench(tiny: Path) -> None:
    """One line of rates, and the same as JSON."""
    done = run("bench", tiny, "-p", 16, "-n", 4, "-r", 1)
    assert b"tokens/s" in done.stdout
    facts = json.loads(run("bench", "-m", tiny, "-p", 16, "-n", 4, "-r", 1, "--json").stdout)
    assert facts["prompt_tokens_per_s"] > 0
    assert facts["generated_tokens_per_s"] > 0


def test_completion_knows_models() -> None:
    """The shell's completion of MODEL offers the registry's names."""
    env = {
        **os.environ,
        "_LLCUDA_FFI_COMPLETE": "bash_complete",
        "COMP_WORDS": "llcuda-ffi chat smol",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([sys.executable, "-c", MAIN], env=env, capture_output=True, timeout=60, check=False)
    assert b"smollm2-135m" in done.stdout, done.stderr


def test_reader_that_leaves(tiny: Path) -> None:
    """A pipe that is closed early ends the command without a traceback."""
    command = [sys.executable, "-c", MAIN, "generate", STORY, "-m", str(tiny), "-n", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    text = process.stderr.read().decode()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in text
    assert "Exception ignored" not in text
