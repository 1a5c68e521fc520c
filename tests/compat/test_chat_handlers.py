"""llama-cpp-python's chat handlers: templates with their own ends, and functions of the caller's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from llcuda_ffi.compat.llama_cpp import Llama, LlamaGrammar, llama_chat_format
from llcuda_ffi.errors import InvalidRequest

from ..support.tiny_model import make_tiny_llama

MESSAGES = [{"role": "user", "content": "Hi"}]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("handlers") / "model.gguf"
    make_tiny_llama(path)
    return path


def answer(llm: Llama, text: str, **settings: Any) -> dict[str, Any]:
    """What is answered where the model says this text."""
    grammar = LlamaGrammar.from_string(f'root ::= "{text}"')
    done: dict[str, Any] = llm.create_chat_completion(MESSAGES, grammar=grammar, max_tokens=40, **settings)
    return done


def test_template(model: Path) -> None:
    """An answer ends at the formatter's eos_token and stop_token_ids; its add_generation_prompt is heard."""
    formatter = llama_chat_format.Jinja2ChatFormatter(TEMPLATE, eos_token="and", bos_token="<s>")
    assert (formatter.eos_token, formatter(messages=MESSAGES).prompt) == ("and", "Hi A:")
    with Llama(model, chat_handler=formatter, verbose=False) as llm:
        done = answer(llm, "yes and no")
        space = llm.tokenize(b" on", add_bos=False)[0]
    assert done["choices"][0]["message"]["content"] == "yes "
    assert done["choices"][0]["finish_reason"] == "stop"
    again = pickle.loads(pickle.dumps(formatter))
    assert again(messages=MESSAGES) == formatter(messages=MESSAGES)
    formatter = llama_chat_format.Jinja2ChatFormatter(
        TEMPLATE, "</s>", "<s>", add_generation_prompt=False, stop_token_ids=[space]
    )
    with Llama(model, chat_handler=formatter, verbose=False) as llm:
        done = llm.create_chat_completion(MESSAGES, max_tokens=9, logits_processor=[lambda ids, row: _only(row, space)])
        assert done["usage"]["prompt_tokens"] == len(llm.tokenize(b"Hi"))
        assert done["usage"]["completion_tokens"] == 1


def _only(row: Any, token: int) -> Any:
    row[:] = -float("inf")
    row[token] = 0
    return row


def test_function(model: Path) -> None:
    """A function answers itself; it gets what was asked by name."""

    def handler(*, llama: Llama, messages: Any, temperature: float = 0.2, **more: Any) -> dict[str, Any]:
        done: dict[str, Any] = llama.create_completion(messages[0]["content"], max_tokens=2, temperature=temperature)
        return {"made": done["usage"]["completion_tokens"], "temperature": temperature, "tools": more["tools"]}

    with Llama(model, chat_handler=handler, verbose=False) as llm:
        assert llm.create_chat_completion(MESSAGES, temperature=0.5) == {"made": 2, "temperature": 0.5, "tools": None}
    with pytest.raises(InvalidRequest, match="or a function"):
        Llama(model, chat_handler=3)


@pytest.mark.parametrize("special", [False, True])
def test_registered(model: Path, special: bool) -> None:
    """A format of the caller's writes the prompt, control tokens included, and says what ends the answer."""
    name = f"mine-{special}"

    @llama_chat_format.register_chat_format(name)
    def format_mine(messages: Any, **_: Any) -> llama_chat_format.ChatFormatterResponse:
        prompt = f'<|im_start|>"{messages[-1]["content"]}"\n{{{{ x }}}}'
        return llama_chat_format.ChatFormatterResponse(prompt, stop="and", added_special=special)

    with Llama(model, chat_format=name, verbose=False) as llm:
        done = answer(llm, "yes and no")
        wanted = llm.tokenize(b'<|im_start|>"Hi"\n{{ x }}', add_bos=not special, special=True)
        chunks = list(llm.create_chat_completion(MESSAGES, max_tokens=3, temperature=0, stream=True))
    assert done["choices"][0]["message"]["content"] == "yes "
    assert done["usage"]["prompt_tokens"] == len(wanted)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}


def test_registered_handler(model: Path) -> None:
    """A handler that was registered is chosen by its name."""

    @llama_chat_format.register_chat_completion_handler("whole")
    def handler(*, llama: Llama, messages: Any, **_: Any) -> str:
        return f"{messages[0]['content']}!"

    with Llama(model, chat_format="whole", verbose=False) as llm:
        assert llm.create_chat_completion(MESSAGES) == "Hi!"
