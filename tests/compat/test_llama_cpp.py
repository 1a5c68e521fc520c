"""Everyday code of llama-cpp-python's users, through llcuda_ffi.compat.llama_cpp: only the import line differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from llcuda_ffi.compat.llama_cpp import Llama

from ..support.tiny_model import make_tiny_bert, make_tiny_llama
from .snippets import Snippet, snippet_id

HEAD = "from llcuda_ffi.compat.llama_cpp import *\n"
LOAD = HEAD + "llm = Llama(model_path='./model.gguf', n_ctx=256, verbose=False, seed=1)\n"

SNIPPETS = [
    Snippet("load", HEAD + "llm = Llama(model_path='./model.gguf')", "llm.n_ctx() == 512"),
    Snippet("n_ctx=0", HEAD + "llm = Llama(model_path='./model.gguf', n_ctx=0, verbose=False)", "llm.n_ctx() == 512"),
    Snippet(
        "seed",
        LOAD
        + """
ask = {"max_tokens": 8, "temperature": 3.0}
text = lambda **more: llm("One", **ask, **more)["choices"][0]["text"]
assert text(seed=1337) == text(seed=1337)
llm.set_seed(1337)
state = llm.save_state()
first, second = text(), text()
llm.load_state(state)
third = text()
llm.set_seed(1337)
fourth = text()
""",
        "first != second and first == third == fourth and state.seed == 1337",
    ),
    Snippet(
        "seeds as C casts them",
        LOAD
        + """
hot = {"max_tokens": 12, "temperature": 3.0, "top_k": 0}
drawn = [llm("One", seed=-1, **hot)["choices"][0]["text"] for _ in range(2)]
same = [llm("One", seed=seed, **hot)["choices"][0]["text"] for seed in (5, 2**32 + 5)]
llm.set_seed(-1)
drawn.append(llm("One", **hot)["choices"][0]["text"])
""",
        "len(set(drawn)) == 3 and same[0] == same[1]",
    ),
    Snippet(
        "mmap", HEAD + "llm = Llama('./model.gguf', use_mmap=False, n_gpu_layers=-1, n_threads=1)", "llm.n_embd() == 32"
    ),
    Snippet(
        "README",
        LOAD
        + """
output = llm(
      "Q: Name the planets in the solar system? A: ", # Prompt
      max_tokens=32, # Generate up to 32 tokens, set to None to generate up to the end of the context window
      stop=["Q:", "\\n"], # Stop generating just before the model would generate a new question
      echo=True # Echo the prompt back in the output
)
text = output["choices"][0]["text"]
""",
        "text.startswith('Q: Name the planets') and output['object'] == 'text_completion'"
        " and output['usage']['total_tokens'] > output['usage']['prompt_tokens'] > 0",
    ),
    Snippet(
        "create_completion",
        LOAD + "out = llm.create_completion('Once', max_tokens=8, temperature=0)",
        "out['choices'][0]['finish_reason'] == 'length'",
    ),
    Snippet(
        "unlimited",
        LOAD + "out = llm.create_completion('Once', max_tokens=-1, temperature=0)",
        "out['usage']['completion_tokens'] > 16",
    ),
    Snippet(
        "stream",
        LOAD + "text = ''.join(o['choices'][0]['text'] for o in llm('Once', max_tokens=8, temperature=0, stream=True))",
        "text == llm('Once', max_tokens=8, temperature=0)['choices'][0]['text']",
    ),
    Snippet(
        "chat",
        LOAD
        + """
out = llm.create_chat_completion(
      messages = [
          {"role": "system", "content": "You are an assistant."},
          {"role": "user", "content": "Hello."}
      ], max_tokens=8
)
""",
        "out['choices'][0]['message']['role'] == 'assistant' and out['object'] == 'chat.completion'",
    ),
    Snippet(
        "chat_format",
        HEAD
        + "llm = Llama('./model.gguf', chat_format='chatml')\nout = llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], max_tokens=4)",
        "out['usage']['completion_tokens'] <= 4",
    ),
    Snippet(
        "chat stream",
        LOAD
        + "deltas = [c['choices'][0]['delta'] for c in llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], stream=True, max_tokens=6)]",
        "deltas[0] == {'role': 'assistant'}",
    ),
    Snippet(
        "JSON mode",
        LOAD
        + """
out = llm.create_chat_completion(
    messages=[{"role": "user", "content": "Who won?"}],
    response_format={"type": "json_object", "schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    temperature=0.7,
)
import json
value = json.loads(out["choices"][0]["message"]["content"])
""",
        "value['n'] in (1, 2)",
    ),
    Snippet(
        "functions",
        LOAD.replace("256", "512")
        + """
out = llm.create_chat_completion(
    messages=[{"role": "user", "content": "Extract Jason is 25"}],
    tools=[{"type": "function", "function": {"name": "User", "parameters": {"type": "object", "properties": {"age": {"enum": [25]}}, "required": ["age"]}}}],
    tool_choice={"type": "function", "function": {"name": "User"}},
)
call = out["choices"][0]["message"]["tool_calls"][0]["function"]
""",
        "call['name'] == 'User' and '25' in call['arguments']",
    ),
    Snippet(
        "functions streamed, and gone on with",
        LOAD.replace("256", "512")
        + """
functions = [{"name": "User", "parameters": {"type": "object", "properties": {"age": {"enum": [25]}}, "required": ["age"]}}]
messages = [{"role": "user", "content": "Extract Jason is 25"}]
asked = {"functions": functions, "function_call": {"name": "User"}}
deltas = [c["choices"][0]["delta"] for c in llm.create_chat_completion(messages, stream=True, **asked)]
calls = [delta["function_call"] for delta in deltas if delta.get("function_call")]
whole = llm.create_chat_completion(messages, **asked)["choices"][0]["message"]["function_call"]
messages += [{"role": "assistant", "content": None, "function_call": whole}, {"role": "function", "name": "User", "content": "ok"}]
out = llm.create_chat_completion(messages, max_tokens=2)
""",
        "[c['name'] for c in calls if 'name' in c] == ['User'] == [whole['name']]"
        " and ''.join(c['arguments'] for c in calls).replace(' ', '') == whole['arguments'].replace(' ', '')"
        " and all(('function_call' in d) == ('tool_calls' in d) for d in deltas) and out['choices']",
    ),
    Snippet(
        "settings by place",
        LOAD
        + """
a = llm.create_completion("Once", None, 3, 0.0, 0.9)["choices"][0]["text"]
b = llm("Once", None, 3, 0.0)["choices"][0]["text"]
streamed = llm("Once", None, 3, 0.0, 0.95, 0.05, 1.0, None, True, [], 0.0, 0.0, 1.0, 40, True)
text = "".join(chunk["choices"][0]["text"] for chunk in streamed)
chat = llm.create_chat_completion([{"role": "user", "content": "Hi"}], None, None, None, None, 0.0, max_tokens=2)
""",
        "a == b and text == 'Once' + a and chat['usage']['completion_tokens'] == 2",
    ),
    Snippet(
        "token by token, by place",
        LOAD
        + "llm.eval([5, 6])\na = llm.sample(40, 0.95, 0.05, 1.0, 0.0)\nb = next(llm.generate([5, 6], 40, 0.95, 0.05, 1.0, 0.0))",
        "a == b",
    ),
    Snippet("no grammar file", HEAD + "LlamaGrammar.from_file('./none.gbnf')", error="cannot be read"),
    Snippet("no schema", HEAD + "LlamaGrammar.from_json_schema('{')", error="JSON text of a schema"),
    Snippet("twice", LOAD + "llm('Once', None, 3, max_tokens=4)", error="max_tokens twice"),
    Snippet("too many by place", LOAD + "llm('Once', *[None] * 25)", error="takes 23"),
    Snippet(
        "embedding",
        HEAD
        + "llm = Llama(model_path='./bert.gguf', embedding=True)\nout = llm.create_embedding('Hello, world!')\nmany = llm.create_embedding(['Hello', 'Goodbye'])",
        "len(out['data'][0]['embedding']) == 32 and [d['index'] for d in many['data']] == [0, 1] and out['usage']['total_tokens'] > 2",
    ),
    Snippet(
        "embed",
        HEAD + "llm = Llama('./bert.gguf', embedding=True)\nv = llm.embed(['a', 'b'], normalize=True)",
        "abs(sum(x * x for x in v[0]) - 1) < 1e-5",
    ),
    Snippet(
        "tokenize",
        LOAD + "tokens = llm.tokenize(b'Hello, world!', add_bos=False)\ntext = llm.detokenize(tokens)",
        "text == b'Hello, world!'",
    ),
    Snippet(
        "from_pretrained",
        HEAD + "llm = Llama.from_pretrained(repo_id='owner/repo', filename='*q8_0.gguf', verbose=False)",
        "llm.n_vocab() > 100",
    ),
    Snippet(
        "grammar",
        LOAD
        + "grammar = LlamaGrammar.from_string('root ::= \"yes\" | \"no\"')\nout = llm('Is it?', grammar=grammar, max_tokens=8)",
        "out['choices'][0]['text'] in ('yes', 'no')",
    ),
    Snippet(
        "save_state",
        LOAD + "llm('Once upon a time there was', max_tokens=4)\nstate = llm.save_state()\nllm.load_state(state)",
        "len(state.data) > 100",
    ),
    Snippet(
        "set_cache",
        LOAD + "llm.set_cache(LlamaRAMCache(capacity_bytes=2 << 30))\nout = llm('Once', max_tokens=2)",
        "out['choices']",
    ),
    Snippet(
        "prompt lookup",
        HEAD
        + """
from llcuda_ffi.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
llm = Llama(model_path="./model.gguf", draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10))
out = llm("a b a b a b", max_tokens=8, temperature=0)
""",
        "out['usage']['completion_tokens'] == 8",
    ),
    Snippet(
        "logits_processor",
        LOAD
        + """
token = llm.tokenize(b" sea", add_bos=False)[0]
def only(input_ids, scores):
    scores[:] = -float("inf")
    scores[token] = 0
    return scores
out = llm("The", max_tokens=2, logits_processor=LogitsProcessorList([only]))
""",
        "out['choices'][0]['text'] == llm.detokenize([token, token]).decode()",
    ),
    Snippet(
        "stopping_criteria",
        LOAD
        + "llm_n = llm.tokenize(b'Once')\nout = llm('Once', max_tokens=9, stopping_criteria=StoppingCriteriaList([lambda ids, logits: len(ids) >= len(llm_n) + 3]))",
        "out['choices'][0]['finish_reason'] == 'stop' and out['usage']['completion_tokens'] == 4",
    ),
    Snippet(
        "logprobs",
        LOAD + "out = llm('Once upon', max_tokens=3, logprobs=2, echo=True)",
        "len(out['choices'][0]['logprobs']['tokens']) == out['usage']['total_tokens']",
    ),
    Snippet(
        "logprobs with echo",
        LOAD + "out = llm('Once upon', max_tokens=2, logprobs=2, echo=True, temperature=0)['choices'][0]",
        "''.join(out['logprobs']['tokens']).startswith('Once upon') and out['logprobs']['top_logprobs'][0] is None"
        " and out['logprobs']['text_offset'][:2] == [0, len(out['logprobs']['tokens'][0])]",
    ),
    Snippet(
        "offsets of a stream",
        LOAD
        + "parts = [o['choices'][0] for o in llm('Once', max_tokens=4, logprobs=1, temperature=0, stream=True)]\n"
        + "found = [at for part in parts if part['logprobs'] for at in part['logprobs']['text_offset']]\n"
        + "whole = llm('Once', max_tokens=4, logprobs=1, temperature=0)['choices'][0]['logprobs']",
        "found == whole['text_offset'] and found[0] == len('Once') and found == sorted(set(found))",
    ),
    Snippet(
        "chat logprobs",
        LOAD
        + "out = llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], max_tokens=1, logprobs=True, top_logprobs=2)\n"
        + "tops = out['choices'][0]['logprobs']['content'][0]['top_logprobs']",
        "out['model'] == './model.gguf' and len(tops) == 2"
        " and all(bytes(top['bytes']).decode('utf-8', 'replace') == top['token'] for top in tops)",
    ),
    Snippet(
        "last_n_tokens_size",
        LOAD
        + "short = Llama('./model.gguf', n_ctx=256, last_n_tokens_size=1)\n"
        + "a, b = (one('Once', max_tokens=30, temperature=0, repeat_penalty=9.0) for one in (llm, short))",
        "a['choices'][0]['text'] != b['choices'][0]['text'] and short.last_n_tokens_size == 1 and llm.n_batch == 512",
    ),
    Snippet("numa", HEAD + "llm = Llama('./model.gguf', numa=True)", error="numactl"),
    Snippet("spm_infill", HEAD + "llm = Llama('./model.gguf', spm_infill=True)", error="prefix, suffix, middle"),
    Snippet("bytes", LOAD + "llm(b'Once')", error="a text or token ids"),
    Snippet("no prompt", LOAD + "llm(None)", error="a text or token ids"),
    Snippet("suffix", LOAD + "out = llm('def f():', suffix='return x', max_tokens=4)", error="filling in the middle"),
    Snippet("lora_path", HEAD + "llm = Llama('./model.gguf', lora_path='./adapter.gguf')", error="adapter.gguf"),
    Snippet(
        "n_vocab",
        LOAD + "n, bos, eos = llm.n_vocab(), llm.token_bos(), llm.token_eos()",
        "0 <= bos < n and 0 <= eos < n",
    ),
    Snippet(
        "eval and sample",
        LOAD
        + """
llm.reset()
llm.eval(llm.tokenize(b"Once upon a time"))
made = []
for _ in range(4):
    token = llm.sample(temp=0.0)
    made.append(token)
    llm.eval([token])
text = llm.detokenize(made).decode()
""",
        "text == llm('Once upon a time', max_tokens=4, temperature=0)['choices'][0]['text']",
    ),
    Snippet(
        "generate tokens",
        LOAD
        + """
made = []
for token in llm.generate(llm.tokenize(b"Once upon a time"), top_k=40, top_p=0.95, temp=1.0, repeat_penalty=1.0):
    made.append(token)
    if len(made) == 3:
        break
""",
        "len(made) == 3",
    ),
    Snippet(
        "constants",
        HEAD
        + "import llcuda_ffi.compat.llama_cpp as llama_cpp\nllm = Llama('./model.gguf', split_mode=llama_cpp.LLAMA_SPLIT_MODE_LAYER, type_k=llama_cpp.GGML_TYPE_F16, seed=llama_cpp.LLAMA_DEFAULT_SEED, chat_handler=None, tokenizer=None, f16_kv=True)\nllama_cpp.llama_backend_init()",
        "llm.n_vocab() > 0 and llama_cpp.LLAMA_POOLING_TYPE_MEAN == 1",
    ),
    Snippet(
        "modules",
        """
from llcuda_ffi.compat.llama_cpp.llama import Llama, LlamaGrammar, LogitsProcessorList
from llcuda_ffi.compat.llama_cpp.llama_chat_format import Jinja2ChatFormatter, Llava15ChatHandler
from llcuda_ffi.compat.llama_cpp.llama_tokenizer import LlamaTokenizer
from llcuda_ffi.compat.llama_cpp.llama_types import ChatCompletionRequestMessage
from llcuda_ffi.compat.llama_cpp.llama_cache import LlamaRAMCache
text = Jinja2ChatFormatter(template="{{ messages[0].content }}!", eos_token="a", bos_token="b")(messages=[{"role": "user", "content": "x"}]).prompt
cache = LlamaRAMCache()
""",
        "text == 'x!' and cache.cache_size == 0 and (1, 2) not in cache",
    ),
    Snippet(
        "a template as chat_handler",
        HEAD
        + "from llcuda_ffi.compat.llama_cpp.llama_chat_format import hf_tokenizer_config_to_chat_formatter\nhandler = hf_tokenizer_config_to_chat_formatter({'chat_template': 'Q: {{ messages[0].content }} A:', 'eos_token': {'content': 'e'}})\nllm = Llama('./model.gguf', chat_handler=handler, verbose=False)\nout = llm.create_chat_completion([{'role': 'user', 'content': 'Hi'}], max_tokens=2)",
        "out['usage']['prompt_tokens'] == len(llm.tokenize(b'Q: Hi A:'))",
    ),
    Snippet(
        "rewind",
        LOAD
        + "llm.eval([5, 6, 7])\nllm.n_tokens = 2\nids = llm.input_ids.tolist()\ntext = llm.tokenizer().decode([5])",
        "ids == [5, 6]",
    ),
    Snippet(
        "generate with stopping_criteria",
        LOAD
        + "made = list(llm.generate([5, 6], penalize_nl=True, stopping_criteria=StoppingCriteriaList([lambda ids, logits: len(ids) >= 4])))",
        "len(made) == 2",
    ),
    Snippet(
        "settings of forks",
        LOAD
        + "out = llm('Once', max_tokens=3, xtc_probability=0.1, dry_multiplier=0.8, dry_range=5, present_penalty=0.1, logits_processor=LogitsProcessorList([MinTokensLogitsProcessor(3, llm.token_eos())]))",
        "out['usage']['completion_tokens'] == 3",
    ),
    Snippet("empty prompt", LOAD + "out = llm('', max_tokens=2)", "out['usage']['prompt_tokens'] == 1"),
    Snippet("several prompts", LOAD + "llm(['a', 'b'], max_tokens=2)", error="one prompt a call"),
    Snippet("rpc", HEAD + "Llama('./model.gguf', rpc_servers='a:1')", error="in this process"),
    Snippet(
        "low level",
        HEAD + "from llcuda_ffi.compat.llama_cpp import llama_load_model_from_file",
        error="llcuda_ffi.Model.load",
    ),
    Snippet("server", "import llcuda_ffi.compat.llama_cpp.server", error="llcuda-ffi serve"),
    Snippet("unknown", HEAD + "Llama('./model.gguf', n_ctxt=5)", error="did you mean n_ctx"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model that generates and one that embeds; a cache with a file of the hub."""
    folder = tmp_path_factory.mktemp("compat")
    make_tiny_llama(folder / "model.gguf")
    make_tiny_bert(folder / "bert.gguf")
    snapshot = folder / "hub" / "models--owner--repo" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("main")
    (snapshot / "model-q8_0.gguf").symlink_to(folder / "model.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=snippet_id)
def test_snippet(snippet: Snippet, folder: Path) -> None:
    """It runs as written and gives what it should; or the error says what to do."""
    snippet.verify()


def test_pickled(folder: Path) -> None:
    """A Llama is pickled as its path and settings."""
    import pickle

    with Llama("./model.gguf", n_ctx=128) as llm:
        again = pickle.loads(pickle.dumps(llm))
    with again:
        assert again.n_ctx() == 128


def test_whole_context(tmp_path: Path) -> None:
    """n_ctx=0 is all that the model was trained for, beyond this package's own default of 4,096."""
    make_tiny_llama(tmp_path / "long.gguf", {"llama.context_length": 8192})
    with Llama(str(tmp_path / "long.gguf"), n_ctx=0, verbose=False) as llm:
        assert llm.n_ctx() == 8192
