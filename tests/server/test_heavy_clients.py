"""Clients that people use, against the server: anthropic, litellm, langchain-openai, llama-index, instructor,
pydantic-ai, smolagents, openai's responses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi.conversion.bert import convert_bert

from ..support.server_process import MESSAGES, Server
from ..support.tiny_bert import write_tiny_bert

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
TOOL = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, and a reranker of random weights."""
    folder = tmp_path_factory.mktemp("clients")
    log = folder / "log"
    convert_bert(write_tiny_bert(folder / "hf", head=True), folder / "ranker.gguf", "f32")
    server = Server(
        log, smollm2, folder / "ranker.gguf", "--alias", f"smol={smollm2.stem}", "-c", 1024, "--api-key", "k"
    )
    yield server
    assert server.stop() == 0
    assert "Traceback" not in log.read_text()


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_openai_responses(served: Server) -> None:
    """Whole, streamed, parsed into a pydantic model, going on from the last one."""
    openai = pytest.importorskip("openai")
    pydantic = pytest.importorskip("pydantic")
    client = openai.OpenAI(base_url=f"{_url(served)}/v1", api_key="k", max_retries=0)
    first = client.responses.create(model="smol", input="Say hello.", max_output_tokens=8, temperature=0)
    assert first.output_text
    with client.responses.stream(model="smol", input="Say hello.", max_output_tokens=8, temperature=0) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert text == first.output_text
    after = client.responses.create(model="smol", input="Again.", previous_response_id=first.id, max_output_tokens=8)
    assert after.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)

    class Person(pydantic.BaseModel):
        age: int

    parsed = client.responses.parse(model="smol", input="How old?", text_format=Person, max_output_tokens=64)
    assert isinstance(parsed.output_parsed, Person)
    chat = client.chat.completions.parse(model="smol", messages=MESSAGES, response_format=Person, max_tokens=64)
    assert isinstance(chat.choices[0].message.parsed, Person)
    client.close()


def test_anthropic(served: Server) -> None:
    """Messages, streams, tools, counting, errors."""
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=_url(served), api_key="k", max_retries=0)
    greedy: dict[str, Any] = {"model": "smol", "max_tokens": 8, "messages": MESSAGES, "extra_body": {"temperature": 0}}
    message = client.messages.create(**greedy)
    assert message.content[0].text
    with client.messages.stream(**greedy) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
        final = stream.get_final_message()
    assert final.stop_reason == message.stop_reason
    assert client.messages.count_tokens(model="smol", messages=MESSAGES).input_tokens > 0
    tools = [{"name": "weather", "input_schema": TOOL}]
    asked: dict[str, Any] = {"model": "smol", "max_tokens": 100, "messages": MESSAGES, "tools": tools}
    used = client.messages.create(**asked, tool_choice={"type": "tool", "name": "weather"})
    assert used.content[-1].input["city"] in ("Paris", "Rome")
    with client.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
        assert stream.get_final_message().content[-1].input["city"] in ("Paris", "Rome")
    assert [model.display_name for model in client.models.list()]

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    runner = client.beta.messages.tool_runner(
        model="smol", max_tokens=16, messages=MESSAGES, tools=[weather], max_iterations=2
    )
    assert runner.until_done().content
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**{**greedy, "extra_body": {"temperature": -1}})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="x").models.list()
    client.close()


def test_litellm(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats, streams, completions, responses, reranking, and Anthropic's way."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    own: dict[str, Any] = {"api_base": f"{_url(served)}/v1", "api_key": "k", "max_tokens": 8}
    assert litellm.completion("openai/smol", MESSAGES, **own).choices[0].message.content
    chunks = list(litellm.completion("openai/smol", MESSAGES, stream=True, **own))
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert litellm.text_completion("Once", model="text-completion-openai/smol", **own).choices[0].text
    answer = litellm.responses("Say hello.", "openai/smol", api_base=own["api_base"], api_key="k", max_output_tokens=8)
    assert answer.output[0].content[0].text
    documents = ["a cat", "a dog", "a stone"]
    for provider, path in (("hosted_vllm", "/v1"), ("cohere", "/v1/rerank")):
        found = litellm.rerank(
            f"{provider}/ranker", "cat", documents, top_n=2, api_base=_url(served) + path, api_key="k"
        )
        assert len(found.results) == 2
        assert found.results[0]["relevance_score"] >= found.results[1]["relevance_score"]
    own["api_base"] = _url(served)
    assert litellm.completion("anthropic/smol", MESSAGES, **own).choices[0].message.content


def test_langchain(served: Server) -> None:
    """Invoke, stream, tools, structured output, the responses API."""
    langchain = pytest.importorskip("langchain_openai")
    llm = langchain.ChatOpenAI(model="smol", base_url=f"{_url(served)}/v1", api_key="k", max_tokens=64, max_retries=0)
    assert llm.invoke("Say hello.").content
    assert "".join(chunk.content for chunk in llm.stream("Say hello."))
    function = {"type": "function", "function": {"name": "weather", "parameters": TOOL}}
    called = llm.bind_tools([function], tool_choice="weather").invoke("Weather?")
    assert called.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    schema = {"title": "Place", "description": "A place", **TOOL}
    assert llm.with_structured_output(schema, method="json_schema").invoke("Where?")["city"] in ("Paris", "Rome")
    other = langchain.ChatOpenAI(
        model="smol", base_url=f"{_url(served)}/v1", api_key="k", max_tokens=16, use_responses_api=True
    )
    assert other.invoke("Say hello.").content
    assert list(other.stream("Say hello."))


def test_instructor(served: Server) -> None:
    """A pydantic model by tools, by JSON schema, by Anthropic's tools."""
    instructor = pytest.importorskip("instructor")
    openai, pydantic = pytest.importorskip("openai"), pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        age: int

    client = openai.OpenAI(base_url=f"{_url(served)}/v1", api_key="k", max_retries=0)
    modes = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]
    if hasattr(instructor.Mode, "RESPONSES_TOOLS"):  # a forced call beside a format of texts
        modes.append(instructor.Mode.RESPONSES_TOOLS)
    for mode in modes:
        found = instructor.from_openai(client, mode=mode).chat.completions.create(
            model="smol", messages=MESSAGES, response_model=Person, max_tokens=100, max_retries=1
        )
        assert isinstance(found.age, int)
    client.close()


def test_llama_index(served: Server) -> None:
    """Complete, stream a chat, a function called by a chat."""
    module = pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    llm = module.OpenAILike(
        model="smol", api_base=f"{_url(served)}/v1", api_key="k", is_chat_model=True, is_function_calling_model=True,
        max_tokens=48, context_window=1024, max_retries=0,
    )  # fmt: skip
    assert llm.complete("Say hello.").text
    assert "".join(chunk.delta or "" for chunk in llm.stream_chat([ChatMessage("Say hello.")]))

    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], user_msg="Weather in Paris?", tool_required=True)
    assert llm.get_tool_calls_from_response(answer)[0].tool_name == "weather"


def test_pydantic_ai(served: Server) -> None:
    """A model as output, by tool and by schema; a stream of text."""
    pydantic_ai = pytest.importorskip("pydantic_ai")
    pydantic = pytest.importorskip("pydantic")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Person(pydantic.BaseModel):
        age: int

    model = OpenAIChatModel("smol", provider=OpenAIProvider(base_url=f"{_url(served)}/v1", api_key="k"))
    for output in (Person, pydantic_ai.NativeOutput(Person)):
        agent = pydantic_ai.Agent(model, output_type=output, model_settings={"max_tokens": 100})
        assert isinstance(agent.run_sync("How old?").output.age, int)
    plain = pydantic_ai.Agent(model, model_settings={"max_tokens": 8})
    assert plain.run_sync("Say hello.").output


def test_smolagents(served: Server) -> None:
    """A message, a stream, a tool that is required."""
    smolagents = pytest.importorskip("smolagents")

    @smolagents.tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return city

    model = smolagents.OpenAIServerModel("smol", api_base=f"{_url(served)}/v1", api_key="k", max_tokens=48)
    asked = [smolagents.ChatMessage("user", [{"type": "text", "text": "Weather in Paris?"}])]
    assert model.generate(asked).content
    assert "".join(delta.content or "" for delta in model.generate_stream(asked))
    called = model.generate(asked, tools_to_call_from=[weather])
    assert called.tool_calls[0].function.name == "weather"
