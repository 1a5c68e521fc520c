"""User code with a mistake on each marked line, which type checkers must find."""

from __future__ import annotations

from llcuda_ffi import AsyncLlama, Embedder, Llama, SamplingParams


def plain(llm: Llama, embedder: Embedder) -> None:
    """A misspelt setting, a wrong type, a result used as another."""
    llm.generate("x", max_tokns=3)  # wrong
    llm.generate("x", max_tokens="3")  # wrong
    llm.generate(5)  # wrong
    llm.generate("x").txt  # wrong
    llm.generate(["x"]).text  # wrong
    llm.generate("x", n=2).text  # wrong
    llm.stream("x", temprature=1.0)  # wrong
    llm.chat([{"role": "user", "content": "Hi"}], tool_chioce="auto")  # wrong
    llm.chat_stream([{"role": "user", "content": "Hi"}], max_tokns=3)  # wrong
    SamplingParams(max_token=3)  # wrong
    Llama("x", nctx=3)  # wrong
    embedder.encode("x", normalise=True)  # wrong
    embedder.encode_query("x", normalise=True)  # wrong
    AsyncLlama("x", nctx=3)  # wrong
    Llama.from_pretrained("x", nctx=3)  # wrong
    llm("x")  # wrong
    llm.create_completion("x")  # wrong
    embedder.encode("x", precision="int4")  # wrong


async def awaited(llm: AsyncLlama) -> None:
    """The same, awaited."""
    await llm.generate("x", max_tokns=3)  # wrong
    (await llm.generate(["x"])).text  # wrong
    await llm.chat([{"role": "user", "content": "Hi"}], max_tokns=3)  # wrong
