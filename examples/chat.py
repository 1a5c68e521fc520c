"""A conversation: the answer is appended, the next turn computes only what is new."""

from llcuda_ffi import Llama

with Llama("smollm2-135m", n_ctx=2048, n_parallel=1) as llm:
    messages = [{"role": "system", "content": "Answer in one short sentence."}]
    for question in ("What is a llama?", "Where does it live?"):
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, max_tokens=40, temperature=0)
        messages.append(answer.message)
        print(f"> {question}\n{answer.text}")
        print(f"  ({answer.usage.cached_tokens} of {answer.usage.prompt_tokens} prompt tokens were kept)")
