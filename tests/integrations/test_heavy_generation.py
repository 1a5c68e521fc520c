"""Adapters that generate, driven by the packages themselves: LangChain, LlamaIndex, `llm`, Haystack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi import Llama
from llcuda_ffi.errors import InvalidRequest

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]  # warnings of other packages are theirs

GREEDY = {"temperature": 0, "max_tokens": 12}
QUESTION = "What is a llama?"


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[Llama]:
    """One model for all adapters."""
    with Llama(smollm2, n_ctx=1024, n_parallel=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def answer(llm: Llama) -> str:
    """What the model says without an adapter."""
    text: str = llm.chat([{"role": "user", "content": QUESTION}], **GREEDY).text
    return text


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_langchain_chat(llm: Llama, answer: str) -> None:
    """The same answer whole, streamed, awaited and in a batch; forced calls and structured output parse."""
    from langchain_core.messages import HumanMessage
    from pydantic import BaseModel

    from llcuda_ffi.integrations.langchain import ChatLlcuda

    chat = ChatLlcuda(llm, settings=GREEDY)
    whole = chat.invoke([HumanMessage(QUESTION)])
    assert whole.content == answer
    assert whole.usage_metadata["output_tokens"] == 12
    assert whole.response_metadata["finish_reason"] == "length"
    assert "".join(str(piece.content) for piece in chat.stream(QUESTION)) == answer

    async def awaited() -> str:
        return "".join([str(piece.content) async for piece in chat.astream(QUESTION)])

    assert asyncio.run(awaited()) == answer
    assert [str(m.content) for m in chat.batch([QUESTION, QUESTION])] == [answer, answer]
    assert "llama" not in str(chat.invoke(QUESTION, stop=["llama"]).content)

    assert chat.get_num_tokens(QUESTION) == len(llm.vocab.tokenize(QUESTION, add_special=False))

    async def cancelled() -> int:
        async def read() -> None:
            async for _ in ChatLlcuda(llm, settings={"max_tokens": 900, "ignore_eos": True}).astream(QUESTION):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while llm.metrics().running:
            await asyncio.sleep(0.01)
        return llm.metrics().cancelled

    before = llm.metrics().cancelled
    assert asyncio.run(cancelled()) == before + 1
    named = {"type": "function", "function": {"name": "add"}}
    called = chat.bind_tools([add], tool_choice=named, max_tokens=100).invoke("Add 1 and 2")
    assert called.tool_calls[0]["name"] == "add"
    called = chat.bind_tools([add], tool_choice="any", max_tokens=100).invoke("Add 1 and 2")
    assert called.tool_calls[0]["name"] == "add"
    assert set(called.tool_calls[0]["args"]) == {"a", "b"}
    total: Any = None
    for piece in chat.bind_tools([add], tool_choice="any", max_tokens=100).stream("Add 1 and 2"):
        total = piece if total is None else total + piece
    assert total.tool_calls[0]["args"] == called.tool_calls[0]["args"]

    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    found = (
        ChatLlcuda(llm, settings={"temperature": 0, "max_tokens": 100}).with_structured_output(Person).invoke("Ann, 7")
    )
    assert isinstance(found, Person)


def test_langchain_text(llm: Llama) -> None:
    """Prompts of one call are one batch; a stream gives the same text."""
    from llcuda_ffi.integrations.langchain import LlcudaLLM

    model = LlcudaLLM(llm, settings=GREEDY)
    want = llm.generate("Once upon a time", **GREEDY).text
    assert model.invoke("Once upon a time") == want
    assert model.batch(["Once upon a time", "The sea"])[0] == want
    assert "".join(model.stream("Once upon a time")) == want


def test_llama_index(llm: Llama, answer: str) -> None:
    """Chat, completion, streams, awaited ones, and a tool that is called."""
    from llama_index.core.base.llms.types import ImageBlock, TextBlock
    from llama_index.core.llms import ChatMessage
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import FunctionTool
    from pydantic import BaseModel

    from llcuda_ffi.integrations.llama_index import LlcudaLLM

    model = LlcudaLLM(llm, settings=GREEDY)
    asked = [ChatMessage(role="user", content=QUESTION)]
    assert model.chat(asked).message.content == answer
    assert "".join(piece.delta or "" for piece in model.stream_chat(asked)) == answer
    assert asyncio.run(model.achat(asked)).message.content == answer

    async def awaited() -> str:
        return "".join([piece.delta or "" async for piece in await model.astream_chat(asked)])

    assert asyncio.run(awaited()) == answer
    want = llm.generate("Once upon a time", **GREEDY).text
    assert model.complete("Once upon a time").text == want
    assert list(model.stream_complete("Once upon a time"))[-1].text == want

    class Sum(BaseModel):
        """A sum."""

        total: int

    assert isinstance(model.structured_predict(Sum, PromptTemplate("Add 1 and 2"), {"max_tokens": 100}), Sum)
    image = ChatMessage(role="user", blocks=[TextBlock(text="What?"), ImageBlock(url="data:image/png;base64,aa==")])
    with pytest.raises(InvalidRequest, match="without a projector"):
        model.chat([image])
    done = model.predict_and_call([FunctionTool.from_defaults(add)], "Add 1 and 2", tool_required=True, max_tokens=100)
    assert done.sources[0].tool_name == "add"


def test_llm_plugin(smollm2: Path) -> None:
    """`llm` finds the models; prompts, conversations, schemas and streams work through its own API."""
    import llm as llm_package

    model = llm_package.get_model("llcuda-ffi/smollm2-135m")
    options = {"temperature": 0, "max_tokens": 12, "n_ctx": 512}
    whole = model.prompt(QUESTION, stream=False, **options)
    assert whole.text()
    assert whole.usage().output == 12
    assert "".join(model.prompt(QUESTION, **options)) == whole.text()
    talk = model.conversation()
    talk.prompt("My name is Ann.", **options).text()
    assert talk.prompt("Say it.", **options).usage().input > whole.usage().input
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert '"a"' in model.prompt("JSON", schema=schema, temperature=0, max_tokens=60, n_ctx=512).text()


def test_haystack(smollm2: Path, answer: str) -> None:
    """The component in a pipeline; streamed pieces are the reply."""
    from haystack import Pipeline
    from haystack.components.agents import Agent
    from haystack.dataclasses import ChatMessage
    from haystack.tools import Tool, Toolset

    from llcuda_ffi.integrations.haystack import LlcudaChatGenerator

    pieces: list[str] = []
    generator = LlcudaChatGenerator(
        str(smollm2),
        settings=GREEDY,
        options={"n_ctx": 1024, "n_parallel": 1},
        streaming_callback=lambda chunk: pieces.append(chunk.content),
    )
    pipeline = Pipeline()
    pipeline.add_component("chat", generator)
    reply = pipeline.run({"chat": {"messages": [ChatMessage.from_user(QUESTION)]}})["chat"]["replies"][0]
    assert reply.text == answer == "".join(pieces)
    tool = Tool(
        name="add",
        description="Adds",
        parameters={"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]},
        function=lambda a: a,
    )
    asked = {"generation_kwargs": {"tool_choice": "required", "max_tokens": 100}}
    for tools in ([tool], Toolset([tool])):
        (reply,) = generator.run([ChatMessage.from_user(QUESTION)], tools=tools, **asked)["replies"]
        assert reply.tool_calls[0].arguments == {"a": 1}
    asked["generation_kwargs"]["max_tokens"] = 5
    (reply,) = generator.run([ChatMessage.from_user(QUESTION)], tools=[tool], **asked)["replies"]
    assert (reply.tool_calls, reply.meta["finish_reason"]) == ([], "length")
    heard: list[str] = []
    generator.run([ChatMessage.from_user(QUESTION)], streaming_callback=lambda chunk: heard.append(chunk.content))
    assert "".join(heard) == answer
    assert Agent(chat_generator=generator, tools=[tool]).run([ChatMessage.from_user(QUESTION)])["messages"]
    again = LlcudaChatGenerator.from_dict(generator.to_dict())
    assert (again.model, again.settings) == (generator.model, generator.settings)
