"""Keywords that nobody knows: what was probably meant, and what other engines' names are called here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .errors import UnknownSetting

# names of llama-cpp-python, vLLM, transformers, Ollama and sentence-transformers → what does the same here
ELSEWHERE = {
    "batch_size": "batch_tokens (tokens computed together)",
    "chat_format": "template= of chat()",
    "convert_to_numpy": "left out: results are arrays of numpy",
    "convert_to_tensor": "torch.from_numpy() of the result",
    "do_sample": "temperature (0 is greedy)",
    "draft_model": "draft",
    "dtype": "a model file of that type",
    "embedding": "the class Embedder",
    "flash_attention": "flash_attn",
    "gpu_layers": "n_gpu_layers",
    "gpu_memory_utilization": "n_ctx, n_parallel and n_gpu_layers (llcuda-ffi model fit)",
    "grammar_str": "grammar",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "logits_processor": "logits_processors",
    "lora_path": "lora=llcuda_ffi.lora.load(llm, path)",
    "lora_request": "lora",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_model_len": "n_ctx",
    "max_new_tokens": "max_tokens",
    "max_num_seqs": "n_parallel",
    "max_seq_len": "n_ctx",
    "max_seq_length": "max_tokens of Embedder",
    "min_new_tokens": "min_tokens",
    "mirostat_mode": "mirostat",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "n_predict": "max_tokens",
    "normalize_embeddings": "normalize",
    "num_ctx": "n_ctx",
    "num_gpu": "n_gpu_layers",
    "num_predict": "max_tokens",
    "num_return_sequences": "n",
    "num_thread": "n_threads",
    "output_value": "encode_tokens() for a vector of each token",
    "repeat_last_n": "penalty_last_n",
    "repetition_penalty": "repeat_penalty",
    "sampling_params": "params",
    "schema": "json_schema",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stopping_criteria": "stop, stop_token_ids or logits_processors",
    "structured_outputs": "json_schema, regex, choices or grammar",
    "tensor_parallel_size": "model_params=ModelParams(tensor_split=...)",
    "threads": "n_threads",
    "trust_remote_code": "left out: no code comes with a GGUF file",
    "truncate_dim": "dim= of encode()",
    "type_k": "kv_type",
    "type_v": "kv_type",
    "typical": "typical_p",
    "use_beam_search": "llcuda_ffi.engine.beam_search.beam_search(llm, prompt), or LLM.beam_search of compat.vllm",
    "use_mlock": "model_params=ModelParams(load_mode='MLOCK')",
    "use_mmap": "model_params=ModelParams(load_mode=...)",
    "use_tqdm": "progress",
    "verbose": "logging.getLogger('llcuda_ffi')",
}

# names of ours that were given in the wrong place
_OF_REQUESTS = ("grammar", "json_schema", "max_tokens", "min_p", "seed", "stop", "temperature", "top_k", "top_p")
_OF_LLAMA = ("draft", "kv_type", "n_ctx", "n_parallel")
ELSEWHERE |= dict.fromkeys(_OF_REQUESTS, "a setting of generate(), stream() and chat()")
ELSEWHERE |= dict.fromkeys(_OF_LLAMA, "an argument of Llama()")
ELSEWHERE |= dict.fromkeys(("device", "n_gpu_layers", "n_threads"), "an argument of Llama() and Embedder()")

# the same of methods
METHODS_ELSEWHERE = {
    "__call__": "generate(prompt).text, or llcuda_ffi.compat.llama_cpp.Llama",
    "apply_chat_template": "chat_prompt()",
    "_scores": "Context.logits (docs/low-level.md)",
    "beam_search": "llcuda_ffi.engine.beam_search.beam_search(llm, prompt)",
    "classify": "not there",
    "complete": "generate()",
    "context_params": "context_params= of llcuda_ffi.Llama",
    "create_chat_completion": "chat(), or llcuda_ffi.compat.llama_cpp.Llama",
    "create_completion": "generate(), or llcuda_ffi.compat.llama_cpp.Llama",
    "create_embedding": "the class Embedder",
    "detokenize": "vocab.detokenize(ids)",
    "embed": "the class Embedder: encode(texts)",
    "encode": "the class Embedder: encode(texts)",
    "ctx": "llcuda_ffi.Context (docs/low-level.md)",
    "eval": "context.decode() (docs/low-level.md)",
    "eval_logits": "Context.logits (docs/low-level.md)",
    "fit": "not there: train with the other library, then convert (llcuda-ffi model convert)",
    "get_embedding_dimension": "dim",
    "get_metrics": "metrics()",
    "get_sentence_embedding_dimension": "dim",
    "get_tokenizer": "vocab",
    "half": "not there: the file has its type (llcuda-ffi quantize makes another)",
    "infer": "generate(), or llcuda_ffi.llcuda.InferenceEngine",
    "invoke": "generate() or chat()",
    "max_seq_length": "max_tokens",
    "model_params": "model_params= of llcuda_ffi.Llama",
    "n_vocab": "vocab.n_tokens",
    "predict": "scores(query, documents) of Reranker",
    "push_to_hub": "not there: the model is a GGUF file",
    "rank": "rank(query, documents) of Reranker",
    "reset": "clear_cache()",
    "reset_prefix_cache": "clear_cache()",
    "reward": "not there",
    "save": "not there: the model is a GGUF file",
    "save_pretrained": "not there: the model is a GGUF file",
    "scores": "Context.logits (docs/low-level.md)",
    "score": "scores(query, documents) of Reranker",
    "set_cache": "always on (docs/cache.md)",
    "sleep": "close()",
    "similarity_pairwise": "(a * b).sum(axis=-1) of normalized vectors",
    "start_multi_process_pool": "not there: every core is used without it",
    "stream_chat": "chat_stream()",
    "stream_generate": "stream()",
    "token_bos": "vocab.bos",
    "token_eos": "vocab.eos",
    "tokenize": "vocab.tokenize(text)",
    "tokenizer": "vocab",
}

_FEW = 30  # names of a message
_NEAR = 0.1  # names that are as much less alike than the nearest one are not named

_Class = TypeVar("_Class", bound=type)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names that are most like a wrong one, at most three."""
    import difflib

    found = difflib.get_close_matches(name, known, 3)
    alike = [difflib.SequenceMatcher(None, one, name).ratio() for one in found]
    return [one for one, ratio in zip(found, alike, strict=True) if ratio > alike[0] - _NEAR]


def unknown_keyword(name: str, owner: str, known: Iterable[str]) -> UnknownSetting:
    """The exception for a keyword that `owner` does not take: it says which one was probably meant."""
    known = list(known)
    near = nearest(str(name), known)
    if name in ELSEWHERE:
        hint = f"here it is {ELSEWHERE[name]}"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"it takes {', '.join(known)}" if len(known) <= _FEW else f"help({owner}) lists them"
    return UnknownSetting(f"unknown setting {name!r} of {owner}: {hint}")


def check_keywords(given: Iterable[str], owner: str, known: Iterable[str]) -> None:
    """Raise UnknownSetting for the first of `given` that is not among `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise unknown_keyword(name, owner, known)


def names_methods(cls: _Class) -> _Class:
    """A class decorator: a method that other libraries have raises an AttributeError that says what it is here.

    A call of an object that generates raises a TypeError that does. Type checkers do not see these two methods.
    """

    def __getattr__(self: Any, name: str) -> Any:
        plain = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name in METHODS_ELSEWHERE:
            meant = METHODS_ELSEWHERE[name]
            where = "in llcuda_ffi's own classes" if ".compat." in type(self).__module__ else "here"
            plain += f": {meant}" if meant.startswith("not ") else f": {where} it is {meant}"
        elif not name.startswith("_") and (near := nearest(name, dir(type(self)))):
            plain += f": did you mean {' or '.join(near)}?"
        raise AttributeError(plain)

    def __call__(self: Any, *args: Any, **keywords: Any) -> Any:
        raise TypeError(f"{type(self).__name__!r} object is not callable: here it is {METHODS_ELSEWHERE['__call__']}")

    cls.__getattr__ = __getattr__  # type: ignore[attr-defined]
    if hasattr(cls, "generate") and "__call__" not in vars(cls):
        cls.__call__ = __call__  # type: ignore[method-assign]
    return cls


def names_unknown(cls: _Class) -> _Class:
    """A class decorator: a keyword that `__init__` does not take raises UnknownSetting instead of a bare TypeError."""
    init: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        try:
            init(self, *args, **keywords)
        except TypeError:
            check_keywords(keywords, cls.__name__, list(inspect.signature(init).parameters)[1:])
            raise

    cls.__init__ = __init__  # type: ignore[misc]
    return cls
