"""Structured output: whether it holds what it promises, and what it costs.

1. 200 random schemas (tests/support/random_schemas.py), one output each at temperature 1: every output that ends by
   itself is validated with jsonschema, formats included.
2. Tokens per second with a schema over those without, at 1 and 16 sequences, in turn, round by round; also with every
   token sampled (runs without choice not taken at once).
3. With --peer also llama-cpp-python's grammar of the same schema over the same libllama, one sequence.

    python bench/structured.py [-r 3] [--schemas 200] [--peer FOLDER] [--json bench/results/structured.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import jsonschema
import report
from peer import Peer

from llcuda_ffi import Llama, SamplingParams
from llcuda_ffi.structured.guided import GuidedConstraint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.random_schemas import random_schema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "pattern": "^[a-z]{3,12}@[a-z]{3,10}[.]com$"},
        "skills": {"type": "array", "items": {"type": "string", "maxLength": 15}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "email", "skills"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 8, "maxItems": 8}
PROMPT = "A list of people in JSON:\n"


def main() -> None:
    p = report.parser(__doc__, rounds=3)
    p.add_argument("--schemas", type=int, default=200)
    p.add_argument("--tokens", type=int, default=96)
    p.add_argument("--sequences", type=int, nargs="*", default=[1, 16])
    p.add_argument("--peer", metavar="FOLDER", help="a folder with llama_cpp 0.3.36 and what it imports")
    a = p.parse_args()
    with Llama(a.model, n_ctx=512, n_parallel=16, n_threads=a.threads) as llm:
        settings = {"model": llm.model.path.name, "tokens": a.tokens, "threads": a.threads}
        out = report.header("structured output", llm.model.library, settings)
        if a.schemas:
            out["validity"] = validity(llm, a.schemas)
        for n in a.sequences:
            out[f"sequences_{n}"] = cost(llm, n, a)
    if a.peer:
        with Llama(a.model, n_ctx=512, n_parallel=1, n_threads=a.threads) as llm:
            out["peer"] = against(llm, a)
    report.write(out, a.json)


def validity(llm: Llama, count: int) -> dict[str, Any]:
    """Generate and validate."""
    schemas = [random_schema(seed) for seed in range(count)]
    params = [
        SamplingParams(json_schema=schema, max_tokens=250, temperature=1.0, seed=i) for i, schema in enumerate(schemas)
    ]
    done = llm.generate([f"An example in JSON (number {i}):\n" for i in range(count)], params)
    ended = valid = 0
    for i, (schema, completion) in enumerate(zip(schemas, done, strict=True)):
        if completion.finish_reason != "eog":
            continue
        ended += 1
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        try:
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(completion.text))
            valid += 1
        except (jsonschema.ValidationError, ValueError) as error:
            print(f"  schema {i}: {completion.text!r}: {error}", file=sys.stderr)
    print(f"  {count} schemas: {ended} outputs ended by themselves, {valid} of them validate")
    return {"schemas": count, "ended": ended, "valid": valid}


def _run(llm: Llama, n: int, tokens: int, **settings: Any) -> float:
    """Tokens per second of n sequences together."""
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, prefix_cache=False, **settings)
    began = perf_counter()
    done = llm.generate([PROMPT] * n, params)
    return sum(len(d.token_ids) for d in done) / (perf_counter() - began)


def cost(llm: Llama, n: int, a: Any) -> dict[str, Any]:
    """All sides in turn."""
    follow = GuidedConstraint.forced
    plain, guided, sampled = [], [], []
    for round in range(a.rounds + 1):
        values = [_run(llm, n, a.tokens, ignore_eos=True), _run(llm, n, a.tokens, json_schema=PEOPLE)]
        GuidedConstraint.forced = lambda self: []  # type: ignore[method-assign]
        try:
            values.append(_run(llm, n, a.tokens, json_schema=PEOPLE))
        finally:
            GuidedConstraint.forced = follow  # type: ignore[method-assign]
        if round:  # the first is the warm-up
            for side, value in zip((plain, guided, sampled), values, strict=True):
                side.append(value)
    return {
        "without": report.line(f"{n} sequences, without a schema", plain, "tokens/s"),
        "schema": report.line(f"{n} sequences, with a schema", guided, "tokens/s"),
        "ratio": report.line("  over without", report.ratios(guided, plain), "", 2),
        "ratio_every_token_sampled": report.line(
            "  over without, every token sampled", report.ratios(sampled, plain), "", 2
        ),
    }


def against(llm: Llama, a: Any) -> dict[str, Any]:
    """One sequence here and there, with the schema and without."""
    peer = Peer(a.peer, llm, n_ctx=512, n_threads=a.threads)
    ids = [int(t) for t in llm.tokenize_prompt(PROMPT)]
    ours, theirs, free = [], [], []
    try:
        for round in range(a.rounds + 1):
            here = _run(llm, 1, a.tokens, json_schema=PEOPLE)
            speeds = []
            for schema in (PEOPLE, None):
                began = perf_counter()
                made = peer.complete([ids], a.tokens, schema=schema)
                speeds.append(made / (perf_counter() - began))
            if round:
                ours.append(here)
                theirs.append(speeds[0])
                free.append(speeds[1])
    finally:
        peer.close()
    return {
        "name": peer.name,
        "ours": report.line("with the schema, ours", ours, "tokens/s"),
        "theirs": report.line(f"with the schema, {peer.name[:24]}", theirs, "tokens/s"),
        "theirs_without": report.line("without, theirs", free, "tokens/s"),
        "ratio": report.line("  ours over theirs, with the schema", report.ratios(ours, theirs), "", 2),
    }


if __name__ == "__main__":
    main()
