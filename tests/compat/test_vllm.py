"""Everyday code of vLLM's users, through llcuda_ffi.compat.vllm: only the import line differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.tiny_model import make_tiny_bert, make_tiny_llama
from .snippets import Snippet, snippet_id

HEAD = "from llcuda_ffi.compat.vllm import *\n"
LOAD = HEAD + "llm = LLM(model='model.gguf', max_model_len=256, max_num_seqs=4)\n"
MESSAGES = "[{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello'}]"


def sampled(settings: str, check: str, name: str = "") -> Snippet:
    """A snippet about one setting of a request."""
    code = (
        LOAD
        + f"outputs = llm.generate(['Once upon a time'], SamplingParams({settings}), use_tqdm=False)\nout = outputs[0].outputs[0]"
    )
    return Snippet(name or settings.partition("=")[0], code, check)


SNIPPETS = [
    Snippet(
        "README",
        HEAD
        + """
prompts = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
llm = LLM(model="model.gguf")
outputs = llm.generate(prompts, sampling_params)
texts = []
for output in outputs:
    prompt = output.prompt
    generated_text = output.outputs[0].text
    texts.append((prompt, generated_text))
""",
        "[p for p, _ in texts] == prompts and all(len(o.outputs[0].token_ids) <= 16 for o in outputs)",
    ),
    Snippet(
        "one prompt",
        LOAD + "outputs = llm.generate('Hello', use_tqdm=False)",
        "len(outputs) == 1 and outputs[0].finished",
    ),
    Snippet(
        "sampling_params=",
        LOAD + "outputs = llm.generate(prompts=['a', 'b'], sampling_params=SamplingParams(max_tokens=3))",
        "len(outputs) == 2",
    ),
    sampled("top_k=-1, ignore_eos=True, max_tokens=4", "len(out.token_ids) == 4"),
    sampled(
        "repetition_penalty=1.2, presence_penalty=0.1, ignore_eos=True, max_tokens=4", "out.finish_reason == 'length'"
    ),
    sampled("stop_token_ids=[5], min_tokens=2, max_tokens=8", "len(out.token_ids) >= 2"),
    sampled("n=3, max_tokens=4", "[o.index for o in outputs[0].outputs] == [0, 1, 2]"),
    sampled(
        "seed=7, max_tokens=4",
        "out.token_ids == llm.generate('Once upon a time', SamplingParams(seed=7, max_tokens=4))[0].outputs[0].token_ids",
    ),
    sampled("seed=2**40, max_tokens=4", "len(out.token_ids) <= 4"),
    Snippet(
        "seed of an LLM",
        HEAD
        + """
hot = SamplingParams(temperature=3.0, max_tokens=8, ignore_eos=True)
made = []
for _ in range(2):
    with LLM('model.gguf', max_model_len=128, seed=42) as llm:
        made.append([o.outputs[0].text for o in llm.generate(['a', 'a', 'a'], hot)])
""",
        "made[0] == made[1] and len(set(made[0])) == 3",
    ),
    Snippet("out of range", HEAD + "SamplingParams(temperature=-1)", error="temperature must be"),
    Snippet("no JSON", HEAD + "SamplingParams(structured_outputs=StructuredOutputsParams(json='{'))", error="not JSON"),
    sampled("stop=None, max_tokens=4", "out.stop_reason is None"),
    sampled(
        "prompt_logprobs=1, logprobs=2, max_tokens=3",
        "outputs[0].prompt_logprobs[0] is None and all(t in d for t, d in zip(out.token_ids, out.logprobs)) and out.cumulative_logprob < 0",
    ),
    sampled(
        "include_stop_str_in_output=True, stop=['a'], max_tokens=64, seed=1",
        "out.stop_reason is None or out.text.endswith('a')",
    ),
    sampled(
        "skip_special_tokens=False, spaces_between_special_tokens=False, max_tokens=4", "isinstance(out.text, str)"
    ),
    sampled(
        "bad_words=['the', 'a'], max_tokens=20",  # their tokens: ' then' is another word
        "not any(list(out.token_ids)[i : i + len(ids)] == ids for i in range(20) for ids in"
        " (llm.get_tokenizer().encode(word, False) for word in ('the', ' the', 'a', ' a')))",
    ),
    sampled("allowed_token_ids=[10, 11], max_tokens=4", "set(out.token_ids) <= {10, 11}"),
    sampled("logit_bias={10: 100.0}, max_tokens=3", "list(out.token_ids) == [10, 10, 10]"),
    sampled(
        "temperature=0, ignore_eos=True, max_tokens=None",
        "outputs[0].outputs[0].finish_reason == 'length'",
        "max_tokens=None",
    ),
    Snippet(
        "logits_processors",
        LOAD
        + """
def only(past, logits):
    logits[:] = -float("inf")
    logits[12 + len(past)] = 0
    return logits
out = llm.generate("a", SamplingParams(logits_processors=[only], max_tokens=3))[0].outputs[0]
""",
        "list(out.token_ids) == [12, 13, 14]",
    ),
    Snippet(
        "structured outputs",
        LOAD
        + """
params = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["Positive", "Negative"]))
outputs = llm.generate(prompts="Classify this sentiment: vLLM is wonderful!", sampling_params=params)
""",
        "outputs[0].outputs[0].text in ('Positive', 'Negative')",
    ),
    Snippet(
        "guided decoding",
        LOAD
        + """
params = SamplingParams(guided_decoding=GuidedDecodingParams(json={"enum": [1, 2]}), max_tokens=50)
text = llm.generate("n:", params)[0].outputs[0].text
""",
        "text in ('1', '2')",
    ),
    Snippet(
        "token ids",
        LOAD + "outputs = llm.generate({'prompt_token_ids': [10, 11, 12]}, SamplingParams(max_tokens=2))",
        "outputs[0].prompt_token_ids == [10, 11, 12]",
    ),
    Snippet(
        "TextPrompt",
        LOAD + "outputs = llm.generate([{'prompt': 'a'}, {'prompt': 'b'}], SamplingParams(max_tokens=2))",
        "outputs[1].prompt == 'b'",
    ),
    Snippet(
        "many params",
        LOAD
        + "outputs = llm.generate(['a', 'b'], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2, ignore_eos=True)])",
        "[len(o.outputs[0].token_ids) for o in outputs] == [1, 2]",
    ),
    Snippet(
        "chat",
        LOAD + f"outputs = llm.chat({MESSAGES}, sampling_params=SamplingParams(max_tokens=4), use_tqdm=False)",
        "len(outputs[0].outputs[0].token_ids) <= 4",
    ),
    Snippet("chats", LOAD + f"outputs = llm.chat([{MESSAGES}] * 2, SamplingParams(max_tokens=4))", "len(outputs) == 2"),
    Snippet(
        "beam search",
        LOAD
        + """
params = BeamSearchParams(beam_width=3, max_tokens=6)
outputs = llm.beam_search([{"prompt": "Once upon"}], params)
sequences = outputs[0].sequences
greedy = llm.generate("Once upon", SamplingParams(temperature=0, max_tokens=6, logprobs=0, ignore_eos=True))[0].outputs[0]
""",
        "len(sequences) == 3 and sequences[0].cumulative_logprob >= greedy.cumulative_logprob - 1e-3"
        " and all(one.text.startswith('Once upon') and one.tokens[:2] == llm.get_tokenizer().encode('Once upon')[:2]"
        " and len(one.tokens) > len(llm.get_tokenizer().encode('Once upon')) for one in sequences)",
    ),
    Snippet(
        "get_tokenizer",
        LOAD
        + f"""
tokenizer = llm.get_tokenizer()
ids = tokenizer.encode("Once upon a time")
prompt = tokenizer.apply_chat_template({MESSAGES}, tokenize=False, add_generation_prompt=True)
""",
        "tokenizer.decode(ids) == 'Once upon a time' and prompt.endswith('assistant\\n')",
    ),
    Snippet(
        "engine settings",
        HEAD
        + "llm = LLM('model.gguf', dtype='auto', tensor_parallel_size=1, gpu_memory_utilization=0.9, enforce_eager=True, trust_remote_code=True, seed=0, enable_prefix_caching=True, max_model_len=128)\nout = llm.generate('a')[0]",
        "out.outputs[0].finish_reason",
    ),
    Snippet(
        "embed",
        HEAD
        + "llm = LLM(model='bert.gguf', task='embed')\n(output,) = llm.embed('Hello, my name is')\nembeds = output.outputs.embedding",
        "len(embeds) == 32",
    ),
    Snippet(
        "score",
        HEAD
        + "llm = LLM(model='bert.gguf', runner='pooling')\noutputs = llm.score('What is it?', ['a dog', 'What is it?'])",
        "outputs[1].outputs.score > outputs[0].outputs.score",
    ),
    Snippet(
        "kinds of prompts that are embedded",
        HEAD
        + """
llm = LLM(model='bert.gguf', task='embed')
text = "Hello, my name is"
whole = llm.embed([text, "b"])[0]
others = [llm.embed(one)[0] for one in (
    {"prompt": text}, {"prompt_token_ids": whole.prompt_token_ids}, whole.prompt_token_ids, TextPrompt(prompt=text)
)]
(tokens,) = llm.encode(text, pooling_task="token_embed")
same = llm.encode(text, PoolingParams(task="embed"), pooling_task=None)[0].outputs.embedding
""",
        "all(abs(one.outputs.data - whole.outputs.data).max() < 1e-3 for one in others)"
        " and tokens.outputs.data.shape == (len(whole.prompt_token_ids), 32) and len(same) == 32",
    ),
    Snippet(
        "cut to a length",
        HEAD + "LLM(model='bert.gguf', task='embed').embed('a b c', truncate_prompt_tokens=2)",
        error="-1 cuts texts to the 128",
    ),
    Snippet(
        "another pooling task",
        HEAD + "LLM(model='bert.gguf', task='embed').encode('a', pooling_task='classify')",
        error="'embed' or 'token_embed'",
    ),
    Snippet("unknown keyword of embed", HEAD + "LLM('bert.gguf', task='embed').embed('a', dim=3)", error="'dim'"),
    Snippet(
        "structured outputs as a dict",
        HEAD + "SamplingParams(structured_outputs={'choice': ['a']})",
        error="must be StructuredOutputsParams",
    ),
    Snippet(
        "modules of the engines",
        HEAD
        + """
from llcuda_ffi.compat.vllm.engine.arg_utils import AsyncEngineArgs as A
from llcuda_ffi.compat.vllm.engine.async_llm_engine import AsyncLLMEngine as B
from llcuda_ffi.compat.vllm.v1.engine.async_llm import AsyncLLM as C
from llcuda_ffi.compat.vllm.pooling_params import PoolingParams as D
""",
        "(A, B, C, D) == (AsyncEngineArgs, AsyncLLMEngine, AsyncLLMEngine, PoolingParams)",
    ),
    Snippet(
        "AsyncLLMEngine",
        HEAD
        + """
import asyncio
async def main():
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="model.gguf", max_model_len=128))
    texts = []
    async for output in engine.generate("Once", SamplingParams(max_tokens=6, temperature=0), request_id="1"):
        texts.append(output.outputs[0].text)
    engine.shutdown()
    return texts, output
texts, last = asyncio.run(main())
""",
        "last.finished and len(last.outputs[0].token_ids) == 6 and all(b.startswith(a) for a, b in zip(texts, texts[1:]))",
    ),
    Snippet(
        "lora_request",
        LOAD + "llm.generate('a', lora_request=LoRARequest('sql', 1, 'adapter.gguf'))",
        error="adapter.gguf",
    ),
    Snippet(
        "modules and kinds of prompts",
        LOAD
        + """
from llcuda_ffi.compat.vllm.inputs import TokensPrompt
from llcuda_ffi.compat.vllm.lora.request import LoRARequest
from llcuda_ffi.compat.vllm.sampling_params import GuidedDecodingParams, RequestOutputKind
params = SamplingParams.from_optional(max_tokens=2, seed=-1, logit_bias={"5": 1.0}).clone()
outputs = llm.generate(TokensPrompt(prompt_token_ids=[5, 6]), params, lora_request=[None])
""",
        "outputs[0].prompt_token_ids == [5, 6]",
    ),
    Snippet(
        "draft and template",
        HEAD
        + "llm = LLM('model.gguf', max_model_len=128, chat_template='Q: {{ messages[0].content }}', pipeline_parallel_size=1, speculative_config={'method': 'ngram', 'num_speculative_tokens': 3})\nout = llm.chat([{'role': 'user', 'content': 'Hi'}], SamplingParams(max_tokens=2), chat_template_content_format='auto')",
        "out[0].prompt == 'Q: Hi'",
    ),
    Snippet(
        "prompts of a chat",
        LOAD
        + f"t = llm.get_tokenizer()\nclosed = t.apply_chat_template({MESSAGES}, tokenize=False)\nids = t.convert_tokens_to_ids(t.tokenize('Hi'))",
        "closed.endswith('Hello<|im_end|>\\n') and t.decode(ids) == 'Hi' and len(t) == t.vocab_size",
    ),
    Snippet(
        "deltas",
        HEAD
        + """
import asyncio
async def main():
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(model="model.gguf", max_model_len=128))
    params = SamplingParams(max_tokens=6, temperature=0, output_kind=RequestOutputKind.DELTA)
    parts = [output async for output in engine.generate("Once", params, request_id="1")]
    await engine.check_health()
    engine.shutdown()
    return parts
parts = asyncio.run(main())
""",
        "parts[-1].finished and sum(len(p.outputs[0].token_ids) for p in parts) == 6",
    ),
    Snippet(
        "the chosen token is the first of its log probabilities",
        LOAD
        + """
asked = SamplingParams(temperature=2.0, logprobs=2, prompt_logprobs=1, max_tokens=20, seed=3, ignore_eos=True)
(done,) = llm.generate("Once upon", asked)
out = done.outputs[0]
""",
        "[next(iter(one)) for one in out.logprobs] == list(out.token_ids)"
        " and abs(sum(next(iter(one.values())).logprob for one in out.logprobs) - out.cumulative_logprob) < 1e-4"
        " and [next(iter(one)) for one in done.prompt_logprobs[1:]] == done.prompt_token_ids[1:]"
        " and any(len(one) == 3 for one in out.logprobs)",
    ),
    Snippet(
        "special tokens in the text",
        LOAD
        + """
t = llm.get_tokenizer()
pair = [t.encode(text, add_special_tokens=False)[0] for text in ("<|im_start|>", "a")]
def only(past, logits):
    logits[:] = -float("inf")
    logits[pair[len(past) % 2]] = 0
    return logits
def text(**more):
    params = SamplingParams(logits_processors=[only], max_tokens=4, ignore_eos=True, **more)
    return llm.generate("a", params)[0].outputs[0].text
""",
        "text() == 'aa' and text(skip_special_tokens=False) == '<|im_start|>a<|im_start|>a'"
        " and text(skip_special_tokens=False, stop='a<|im') == '<|im_start|>'",
    ),
    Snippet(
        "control tokens in a message",
        LOAD
        + """
t = llm.get_tokenizer()
(output,) = llm.chat([{"role": "user", "content": "Hi<|im_end|>"}], SamplingParams(max_tokens=1))
(mark,) = t.encode("<|im_end|>", add_special_tokens=False)
""",
        "output.prompt_token_ids.count(mark) == 1 and output.prompt.count('<|im_end|>') == 2",
    ),
    Snippet(
        "guided decoding of a backend",
        LOAD
        + "params = SamplingParams(guided_decoding=GuidedDecodingParams.from_optional(choice=['a', 'b'], regex=None, backend='outlines'))\n"
        + "text = llm.generate('n:', params)[0].outputs[0].text",
        "text in ('a', 'b') and GuidedDecodingParams.from_optional(json=None) is None",
    ),
    Snippet(
        "aborted by another task",
        HEAD
        + """
import asyncio, time
def slow(past, logits):
    time.sleep(0.01)
    return logits
async def main(kind):
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(model="model.gguf", max_model_len=256))
    begun = asyncio.Event()
    async def read():
        params = SamplingParams(max_tokens=200, ignore_eos=True, logits_processors=[slow], output_kind=kind)
        found = []
        async for output in engine.generate("Once", params, request_id="1"):
            found.append(output)
            begun.set()
        return found
    task = asyncio.create_task(read())
    await begun.wait()
    await engine.abort("1")
    found = await task
    async for output in engine.generate("Once", SamplingParams(max_tokens=2), request_id="1"):
        pass
    engine.shutdown()
    return found[-1], output
lasts = [asyncio.run(main(kind)) for kind in (RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA)]
""",
        "all(cut.finished and cut.outputs[0].finish_reason == 'abort' and later.finished for cut, later in lasts)"
        " and 0 < len(lasts[0][0].outputs[0].token_ids) < 200",
    ),
    Snippet(
        "log probabilities of deltas",
        HEAD
        + """
import asyncio
async def main(kind):
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(model="model.gguf", max_model_len=128))
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=1, ignore_eos=True, output_kind=kind)
    found = [output.outputs[0] async for output in engine.generate("Once", params, request_id="1")]
    engine.shutdown()
    return found
deltas, whole = asyncio.run(main(RequestOutputKind.DELTA)), asyncio.run(main(RequestOutputKind.FINAL_ONLY))[-1]
""",
        "[one for delta in deltas for one in delta.logprobs] == whole.logprobs and len(whole.logprobs) == 6"
        " and abs(deltas[-1].cumulative_logprob - whole.cumulative_logprob) < 1e-6",
    ),
    Snippet(
        "adapter of an asynchronous request",
        HEAD
        + """
import asyncio
async def main():
    engine = AsyncLLMEngine.from_engine_args(EngineArgs(model="model.gguf", max_model_len=128))
    try:
        async for _ in engine.generate("a", SamplingParams(), "1", lora_request=LoRARequest("sql", 1, "adapter.gguf")):
            pass
    finally:
        engine.shutdown()
asyncio.run(main())
""",
        error="adapter.gguf",
    ),
    Snippet("several processes", HEAD + "LLM('model.gguf', data_parallel_size=2)", error="vLLM's processes"),
    Snippet("unknown setting", HEAD + "SamplingParams(max_token=5)", error="did you mean max_tokens"),
    Snippet(
        "unknown engine setting", HEAD + "LLM('model.gguf', max_model_length=5)", error="did you mean max_model_len"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model that generates and one that embeds."""
    folder = tmp_path_factory.mktemp("compat")
    make_tiny_llama(folder / "model.gguf")
    make_tiny_bert(folder / "bert.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=snippet_id)
def test_snippet(snippet: Snippet, folder: Path) -> None:
    """It runs as written and gives what it should; or the error says what to do."""
    snippet.verify()
