"""Answers that obey a schema: the type goes in, a value of it comes out (extra `structured`)."""

from dataclasses import dataclass

from llcuda_ffi import Llama


@dataclass
class Person:
    """Who is spoken of."""

    name: str
    age: int


with Llama("smollm2-135m", n_ctx=1024, n_parallel=1) as llm:
    text = "My sister Ann is 34 years old."
    answer = llm.generate(f"{text}\nThe person as JSON:\n", json_schema=Person, max_tokens=60, temperature=0)
    print(answer.text)
    print(answer.parsed)
