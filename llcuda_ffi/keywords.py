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
    "lora_path": "lora=LoraAdapter(...)",
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
    "type_k": "kv_type",
    "type_v": "kv_type",
    "typical": "typical_p",
    "use_mlock": "model_params=ModelParams(load_mode='MLOCK')",
    "use_mmap": "model_params=ModelParams(load_mode=...)",
    "use_tqdm": "progress",
    "verbose": "logging.getLogger('llcuda_ffi')",
}

_Class = TypeVar("_Class", bound=type)


def unknown_keyword(name: str, owner: str, known: Iterable[str]) -> UnknownSetting:
    """The exception for a keyword that `owner` does not take: it says which one was probably meant."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(name, known, 3)
    if name in ELSEWHERE:
        hint = f"here it is {ELSEWHERE[name]}"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"it takes {', '.join(known)}"
    return UnknownSetting(f"unknown setting {name!r} of {owner}: {hint}")


def check_keywords(given: Iterable[str], owner: str, known: Iterable[str]) -> None:
    """Raise UnknownSetting for the first of `given` that is not among `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise unknown_keyword(name, owner, known)


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
