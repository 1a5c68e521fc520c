"""How fast llama-cpp-python computes what `bundle tune` times: `llama_cpp_rates.py MODEL THREADS`, a line of JSON.

A prompt of 128 tokens, the best of three, and an answer of 32, the best stretch of 8, after a short warm-up, on its
lowest level that has a Python object: what is timed is the compiled library.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

import llama_cpp

PROMPT, ANSWER, STRETCH = 128, 32, 8  # as in llcuda_ffi/devices/speed.py


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    llm = llama_cpp.Llama(
        path, n_ctx=PROMPT + ANSWER, n_batch=PROMPT, n_ubatch=PROMPT, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip

    def rate(begin: int, steps: int, n: int) -> float:
        start = perf_counter()
        for i in range(steps):
            llm.eval([(begin + i * n + k) % llm.n_vocab() for k in range(n)])
        return steps * n / (perf_counter() - start)

    rate(0, 1, 8)
    prompts = []
    for _ in range(3):
        llm.reset()
        prompts.append(rate(0, 1, PROMPT))
    answers = [rate(at, STRETCH, 1) for at in range(PROMPT, PROMPT + ANSWER, STRETCH)]
    print(json.dumps({"prompt": max(prompts), "answer": max(answers), "version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
