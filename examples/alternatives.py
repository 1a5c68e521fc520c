"""What else the model could have written: log probabilities of each token and of its rivals."""

import math

from llcuda_ffi import Llama

with Llama("smollm2-135m", n_ctx=256, n_parallel=1) as llm:
    done = llm.generate("The capital of France is", max_tokens=3, temperature=0, logprobs=3)
    for entry in done.logprobs:
        rivals = ", ".join(
            f"{llm.vocab.piece(token).decode(errors='replace')!r} {math.exp(value):.2f}" for token, value in entry.top
        )
        print(f"{entry.bytes.decode()!r} {math.exp(entry.logprob):.2f}  of  {rivals}")
