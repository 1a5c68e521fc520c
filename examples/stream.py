"""Text as it is generated, and what it took."""

from llcuda_ffi import Llama

with Llama("smollm2-135m", n_ctx=1024, n_parallel=1) as llm:
    for chunk in llm.stream("Once upon a time", max_tokens=48, seed=7):
        print(chunk.text, end="", flush=True)
        done = chunk.completion
    print(f"\n{done.timings.ttft_s * 1000:.0f} ms to the first token, {done.timings.tokens_per_s:.0f} tokens/s")
