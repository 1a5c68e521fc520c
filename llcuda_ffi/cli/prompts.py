"""`generate --file`: any number of prompts through one Llama, with bounded memory, in order, resumable.

Line i of the output is the result of line i of the input. A run that was stopped goes on after the last whole line
of the output; a line that cannot be computed becomes {"error": …} and the run goes on.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..engine.request import Request
from ..errors import EngineFailure, InvalidRequest, LlcudaError
from ..fetch.progress import Progress
from ..llama import Llama
from ..params import override
from ..sampling_params import SamplingParams

_WINDOW = 4  # requests in flight, for each one that runs


def run_file(llm: Llama, source: Path, output: Path, params: SamplingParams) -> int:
    """Compute every line of `source` that `output` ("-": standard output) does not have yet.

    Returns:
        how many lines failed in this run.
    """
    dash = str(output) == "-"
    piped = dash or (output.exists() and not output.is_file())  # /dev/stdout, a pipe: nothing to go on after
    done = 0 if piped else _resume(output)
    with source.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    if done > total:
        raise InvalidRequest(f"{output} has {done} results, {source} has {total} prompts: they do not belong together")
    if done:
        click.echo(f"{output} has {done} results already, going on after them", err=True)
    flight: deque[Request | str] = deque()
    failed = 0
    with (
        open(1, "wb", closefd=False) if dash else output.open("ab") as out,
        Progress("", total, None, unit="prompt", done=done) as shows,
    ):

        def write_first() -> None:
            nonlocal failed
            entry = flight.popleft()
            if isinstance(entry, Request):
                llm.engine.wait(entry)
                if isinstance(entry.error, EngineFailure):
                    raise entry.error  # no later line can be computed either
                result = entry.completion.to_dict() if entry.completion else {"error": str(entry.error)}
            else:
                result = {"error": entry}
            failed += "error" in result
            out.write(encoded(json.dumps(result, ensure_ascii=False)) + b"\n")
            out.flush()
            shows.advance(1)

        try:
            for line in _lines(source, done):
                try:
                    prompt, settings = _parse(line)
                    request = llm.requests(prompt, override(params, settings))[0]
                except LlcudaError as error:
                    flight.append(str(error))
                else:
                    llm.engine.submit(request)
                    flight.append(request)
                while len(flight) >= _WINDOW * llm.n_parallel:
                    write_first()
            while flight:
                write_first()
        finally:
            llm.engine.cancel(*(entry for entry in flight if isinstance(entry, Request)))
        if not piped:
            os.fsync(out.fileno())
    click.echo(f"{total - done} prompts, {failed} failed", err=True)
    return failed


def encoded(text: str) -> bytes:
    """JSON as bytes; half of a surrogate pair, which UTF-8 cannot have, becomes JSON's own escape for it."""
    return text.encode("utf-8", "backslashreplace")


def _lines(source: Path, skip: int) -> Iterator[bytes]:
    with source.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            yield line


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the line is no JSON: {error}") from None
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise InvalidRequest('the line must be a JSON string, or an object with a "prompt"')
    prompt = value.pop("prompt")
    settings = {k: v for k, v in value.items() if k not in ("id", "n")}
    return prompt, settings


def _resume(output: Path) -> int:
    """Count the whole lines of an earlier run, and cut off a torn last one."""
    if not output.exists():
        return 0
    count = end = 0
    with output.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            count += 1
            end += len(line)
    os.truncate(output, end)
    return count
