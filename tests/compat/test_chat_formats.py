"""llama-cpp-python's names of chat formats: the prompt of each, and what ends its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from llcuda_ffi.chat.template.builtin import TEMPLATES
from llcuda_ffi.chat.template.template import ChatTemplate
from llcuda_ffi.compat.llama_cpp import Llama
from llcuda_ffi.compat.llama_cpp.chat_formats import FORMATS, chat_format
from llcuda_ffi.errors import UnsupportedModel

from ..support.tiny_model import make_tiny_llama

USER = {"role": "user", "content": "Hi"}
TALK = [
    {"role": "system", "content": "Be brief."},
    USER,
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye"},
]
# the prompts of TALK, and of a lone "Hi"
PROMPTS = {
    "llama-2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yes? </s><s>[INST] Bye [/INST]",
        "<s>[INST] Hi [/INST]",
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "oasst_llama": (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<|prompter|>Hi</s><|assistant|>Yes?</s><|prompter|>Bye</s><|assistant|>",
        "[INST] <<SYS>>\n\n<</SYS>>\n\n<|prompter|>Hi</s><|assistant|>",
    ),
    "baichuan": (
        "Be brief.<reserved_102>Hi<reserved_103>Yes?<reserved_102>Bye<reserved_103>",
        "<reserved_102>Hi<reserved_103>",
    ),
    "baichuan-2": (
        "Be brief.<reserved_106>Hi<reserved_107>Yes?<reserved_106>Bye<reserved_107>",
        "<reserved_106>Hi<reserved_107>",
    ),
    "openbuddy": (
        "Be brief.\n\nUser: Hi\nAssistant: Yes?\nUser: Bye\nAssistant:",
        "User: Hi\nAssistant:",
    ),
    "redpajama-incite": (
        "Be brief.\n<human>: Hi\n<bot>: Yes?\n<human>: Bye\n<bot>:",
        "\n<human>: Hi\n<bot>:",
    ),
    "snoozy": (
        "### Instruction:\nBe brief.\n### Prompt: Hi\n### Response: Yes?\n### Prompt: Bye\n### Response:",
        "### Prompt: Hi\n### Response:",
    ),
    "phind": (
        "### System Prompt\nBe brief.\n\n### User Message: Hi\n\n### Assistant: Yes?\n\n"
        "### User Message: Bye\n\n### Assistant:",
        "### System Prompt\nYou are an intelligent programming assistant.\n\n### User Message: Hi\n\n### Assistant:",
    ),
    "intel": (
        "### System:\nBe brief.\n### User:\nHi\n### Assistant:\nYes?\n### User:\nBye\n### Assistant:\n",
        "### User:\nHi\n### Assistant:\n",
    ),
    "open-orca": (
        "Be brief.<|end_of_turn|>\nUser: Hi<|end_of_turn|>\nAssistant: Yes?<|end_of_turn|>\n"
        "User: Bye<|end_of_turn|>\nAssistant:",
        "User: Hi<|end_of_turn|>\nAssistant:",
    ),
    "mistrallite": (
        "<|system|>Be brief.</s><|prompter|>Hi </s>\n<|assistant|>Yes? <|prompter|>Bye </s>\n<|assistant|>",
        "<|system|></s><|prompter|>Hi </s>\n<|assistant|>",
    ),
    "pygmalion": (
        "<|system|>Be brief.\n\n<|user|>\nHi\n\n<|model|>\nYes?\n\n<|user|>\nBye\n\n<|model|>\n",
        "<|system|>\n\n<|user|>\nHi\n\n<|model|>\n",
    ),
    "chatglm3": (
        "<|system|>\nBe brief.<|user|>\n Hi<|assistant|>\n Yes?<|user|>\n Bye<|assistant|>",
        "<|system|>\n<|user|>\n Hi<|assistant|>",
    ),
    "openchat": (
        "Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Yes?<|end_of_turn|>"
        "GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
        "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:",
    ),
    "saiga": (
        "<s>system\nBe brief.</s><s>user\nHi</s><s>bot\nYes?</s><s>user\nBye</s><s>bot\n",
        "<s>user\nHi</s><s>bot\n",
    ),
}  # fmt: skip
# written as llama-cpp-python writes them; what the others change is in the module's words
SAME = ("oasst_llama", "baichuan", "baichuan-2", "redpajama-incite", "mistrallite", "pygmalion", "chatglm3")
ONE_SYSTEM = {"phind": "You are an intelligent programming assistant."}  # theirs writes this one only


def rendered(name: str, messages: list[dict[str, str]]) -> str:
    """The prompt of a conversation."""
    template = ChatTemplate(chat_format(name).template, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.prompt(messages, add_generation_prompt=True)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name: str) -> None:
    """With a system message and an earlier answer, and alone."""
    assert (rendered(name, TALK), rendered(name, [USER])) == PROMPTS[name]


def test_names() -> None:
    """Every format that llama-cpp-python registers has a template here, or an error that says what to do."""
    theirs = {
        "llama-2", "llama-3", "alpaca", "qwen", "vicuna", "oasst_llama", "baichuan-2", "baichuan", "openbuddy",
        "redpajama-incite", "snoozy", "phind", "intel", "open-orca", "mistrallite", "zephyr", "pygmalion", "chatml",
        "mistral-instruct", "chatglm3", "openchat", "saiga", "gemma", "chatml-function-calling",
    }  # fmt: skip
    assert theirs <= {*FORMATS, *TEMPLATES}
    assert set(PROMPTS) >= {name for name, format in FORMATS.items() if format.template not in TEMPLATES}
    for name in ("functionary", "functionary-v1", "functionary-v2"):
        with pytest.raises(UnsupportedModel, match=r"leave it out\..*Jinja2ChatFormatter"):
            chat_format(name)
    with pytest.raises(UnsupportedModel, match="choose alpaca, baichuan"):
        chat_format("alpacca-9")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a template that knows the old formats."""
    path = tmp_path_factory.mktemp("formats") / "model.gguf"
    make_tiny_llama(path)
    return path


def test_stop(model: Path) -> None:
    """An answer ends at the format's own texts, beside those of the request."""
    with Llama(model, chat_format="redpajama-incite", n_ctx=256) as llm:
        forced = llm.create_chat_completion([USER], max_tokens=40, grammar=_grammar("one <human>: two"))
        assert forced["choices"][0]["message"]["content"] == "one "
        forced = llm.create_chat_completion([USER], max_tokens=40, stop=["n"], grammar=_grammar("one <human>: two"))
        assert forced["choices"][0]["message"]["content"] == "o"


def test_function_calling(model: Path) -> None:
    """chatml-function-calling: a call that is asked for by name is of that function and its schema."""
    place = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": place}}
    with Llama(model, chat_format="chatml-function-calling", n_ctx=512) as llm:
        answer = llm.create_chat_completion(
            [USER], tools=[tool], tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=100
        )
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"].replace(" ", "")) == ("weather", '{"city":"Rome"}')


def _grammar(text: str) -> object:
    from llcuda_ffi.compat.llama_cpp import LlamaGrammar

    return LlamaGrammar.from_string(f'root ::= "{text}"')


@pytest.mark.heavy
def test_as_theirs() -> None:
    """The prompts of llama-cpp-python itself, where it is installed."""
    theirs = pytest.importorskip("llama_cpp.llama_chat_format", exc_type=ImportError)
    for name in (*SAME, *ONE_SYSTEM):
        function = getattr(theirs, {"oasst_llama": "format_oasst_llama", "baichuan-2": "format_baichuan2"}.get(
            name, f"format_{name.replace('-', '_')}"))  # fmt: skip
        system = ONE_SYSTEM.get(name, "Be brief.")
        messages = [{"role": "system", "content": system}, *TALK[1:]]
        response = function(messages)
        assert rendered(name, messages) == response.prompt, name
