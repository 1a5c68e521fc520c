"""A conversation of 20 turns: what each turn computes of its prompt, and the time against computing it all again.

python bench/turns.py [-r 1] [--turns 20] [--json bench/results/turns.json]
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import report

from llcuda_ffi import Llama


def talk(llm: Llama, turns: int, tokens: int, *, cached: bool) -> tuple[float, list[dict[str, int]], bool]:
    """Hold the conversation; returns seconds, the tokens of each turn, and whether each computed only what was new."""
    messages: list[Any] = []
    rows: list[dict[str, int]] = []
    exact = True
    held = 0
    began = perf_counter()
    for turn in range(turns):
        messages.append(
            {"role": "user", "content": f"Question {turn + 1}: tell me something about the number {turn + 1}."}
        )
        # the answers are long enough to count and end by the model's end token, as in a real conversation
        done = llm.chat(messages, max_tokens=tokens, temperature=1.0, seed=turn, prefix_cache=cached)
        prompt, kept = done.usage.prompt_tokens, done.usage.cached_tokens
        rows.append({"prompt": prompt, "computed": prompt - kept, "held": held})
        if turn and done.finish_reason:
            exact = exact and kept >= held
        held = prompt + (done.usage.completion_tokens - 1 if done.finish_reason == "stop" else 0)
        messages.append(done.message)
    return perf_counter() - began, rows, exact


def main() -> None:
    p = report.parser(__doc__, rounds=1)
    p.add_argument("--turns", type=int, default=20)
    p.add_argument("--tokens", type=int, default=32)
    a = p.parse_args()
    with Llama(a.model, n_ctx=2048, n_parallel=1, n_threads=a.threads) as llm:
        settings = {"model": llm.model.path.name, "turns": a.turns, "tokens": a.tokens, "threads": a.threads}
        out = report.header("turns", llm.model.library, settings)
        llm.chat([{"role": "user", "content": "Hi"}], max_tokens=4)
        cached, again = [], []
        rows: list[dict[str, int]] = []
        for _ in range(a.rounds):
            llm.clear_cache()
            seconds, rows, exact = talk(llm, a.turns, a.tokens, cached=True)
            cached.append(seconds)
            again.append(talk(llm, a.turns, a.tokens, cached=False)[0])
        for i, row in enumerate(rows):
            print(f"  turn {i + 1:>2}: {row['prompt']:>5} prompt tokens, {row['computed']:>4} computed")
        print(f"  each turn computed only what the cache did not hold: {exact}")
        out["rows"], out["exact"] = rows, exact
        out["cached"] = report.line("all turns, with the cache", cached, "s")
        out["again"] = report.line("all turns, each prompt computed again", again, "s")
        out["ratio"] = report.line("  again over cached", report.ratios(again, cached), "", 2)
    report.write(out, a.json)


if __name__ == "__main__":
    main()
