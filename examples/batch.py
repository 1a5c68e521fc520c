"""Many prompts in one call: they share the batches of the model."""

from llcuda_ffi import Llama, SamplingParams

cities = ["France", "Japan", "Egypt", "Brazil", "Kenya", "Norway"]

with Llama("smollm2-135m", n_ctx=512, n_parallel=6) as llm:
    params = SamplingParams(temperature=0, max_tokens=8, stop=(".", "\n"))
    done = llm.generate([f"The capital of {city} is" for city in cities], params)
    for city, completion in zip(cities, done, strict=True):
        print(f"{city}:{completion.text}")
