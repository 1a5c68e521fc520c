"""llama-cpp-python's class Llama over this engine's."""

from __future__ import annotations

import importlib
import os
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import llama as engine
from ...chat.tools.function_call import with_tool_calls
from ...chat.tools.functions import Tool
from ...core.adapter import LoraAdapter
from ...core.model import Model
from ...embedder import Embedder
from ...errors import InvalidRequest, MissingExtra, UnsupportedModel
from ...gguf import GGUFReader
from ...hub.references import resolve
from ...keywords import check_keywords, names_methods
from . import results, written
from .chat_formats import ChatFormat, chat_format
from .embeddings import Embeddings
from .llama_chat_format import REGISTERED, FormatterHandler, Jinja2ChatFormatter, Llava15ChatHandler
from .llama_grammar import LlamaGrammar
from .llama_speculative import LlamaPromptLookupDecoding
from .processors import LogitsProcessorList, StoppingCriteriaList
from .settings import (
    CHAT_ORDER,
    COMPLETION_ORDER,
    ONLY_UNSET,
    check_unset,
    context_params,
    drawn,
    flash_attention,
    kv_type,
    model_params,
    named,
    sampling_settings,
)
from .token_by_token import LlamaState, TokenByToken
from .tokens import Tokens

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Llama", "LlamaGrammar", "LlamaState", "LogitsProcessorList", "StoppingCriteriaList"]

_KNOWN = (
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "vocab_only", "use_mmap", "use_mlock", "kv_overrides",
    "seed", "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "rope_scaling_type", "pooling_type",
    "attention_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_orig_ctx", "logits_all", "embedding", "offload_kqv", "flash_attn", "op_offload",
    "swa_full", "no_perf", "last_n_tokens_size", "lora_scale", "lora_path", "chat_format", "draft_model",
    "type_k", "type_v", "verbose", "chat_handler", "flash_attn_type", "kv_unified", "n_seq_max", "device", "f16_kv",
    *ONLY_UNSET,
)  # fmt: skip


@names_methods
class Llama(Tokens, TokenByToken, Embeddings):
    """A model as llama-cpp-python has it: results are dicts in OpenAI's form.

        llm = Llama(model_path="model.gguf", n_ctx=2048, verbose=False)
        print(llm("Q: What is water? A:", max_tokens=32, stop=["Q:"])["choices"][0]["text"])

    Differences: all layers go to the GPU where there is one, unless n_gpu_layers says otherwise; a prefix computed
    before is always reused; `logits_all` is not needed.

    Attributes:
        llm: the llcuda_ffi.Llama behind it.
        model_path: as it was given.
        chat_format, chat_handler, draft_model, lora_path, n_batch, last_n_tokens_size: as they were given.
        cache: what `set_cache` was given.
    """

    def __init__(self, model_path: str | os.PathLike[str], **settings: Any) -> None:
        """Load a model; takes the keywords of llama-cpp-python's Llama.

        Raises:
            UnknownSetting: a keyword that it does not take either.
            ModelError, InvalidRequest: as llcuda_ffi.Llama.
        """
        super().__init__()
        check_keywords(settings, "Llama", _KNOWN)
        check_unset(settings)
        self.model_path = os.fspath(model_path)
        self.verbose = bool(settings.get("verbose", True))
        self._settings = settings
        self.chat_format, self.chat_handler = settings.get("chat_format"), settings.get("chat_handler")
        self.draft_model, self.lora_path = settings.get("draft_model"), settings.get("lora_path")
        self.n_batch, self.last_n_tokens_size = settings.get("n_batch", 512), settings.get("last_n_tokens_size", 64)
        self.cache: Any = None
        self._handler = self.chat_handler or REGISTERED.get(str(self.chat_format))
        self._format = self._conversations()
        if not isinstance(self.draft_model, (LlamaPromptLookupDecoding, type(None))):
            raise InvalidRequest("draft_model takes LlamaPromptLookupDecoding; llcuda_ffi.Llama(draft=…) takes a model")
        self._seed = drawn(settings.get("seed"))
        self._lora: Any = None
        self._embedder: Embedder | None = None
        self._llm: engine.Llama | None = None
        self._vocabulary: Model | None = None
        if settings.get("vocab_only"):
            self._vocabulary = self.model = Model.load(resolve(model_path), model_params(settings))
        elif settings.get("embedding"):
            self.model = self.embedder.model
        else:
            self.model = self.llm.model

    def _conversations(self) -> ChatFormat | None:
        """How conversations are written; None: as the model's file says, or by a handler of the caller's own."""
        handler = self._handler
        if isinstance(handler, Jinja2ChatFormatter):
            return ChatFormat(handler.template, handler.stop, handler.stop_token_ids, handler.add_generation_prompt)
        if handler is not None and not callable(handler):
            raise InvalidRequest(
                "chat_handler takes a Jinja2ChatFormatter or a handler with clip_model_path of "
                "llcuda_ffi.compat.llama_cpp.llama_chat_format, or a function (llama=…, messages=…, …)"
            )
        known = self.chat_format is None or self.chat_format in REGISTERED
        return None if known else chat_format(str(self.chat_format))

    @property
    def llm(self) -> engine.Llama:
        """The llcuda_ffi.Llama behind it."""
        if self._llm is None:
            given = self._settings
            if self._vocabulary is not None:
                raise UnsupportedModel("made with vocab_only=True: it has a vocabulary, and nothing to compute with")
            draft = self.draft_model
            layers = given.get("n_gpu_layers")
            self._llm = engine.Llama(
                self.model_path if self._embedder is None else self._embedder.model,
                device=given.get("device") or "auto",
                n_ctx=given.get("n_ctx", 512) or self._trained_context(),
                n_parallel=1,
                n_batch=given.get("n_batch"),
                n_ubatch=given.get("n_ubatch"),
                n_threads=given.get("n_threads") or "auto",
                n_gpu_layers="auto" if layers is None else layers,
                kv_type=kv_type(given),
                flash_attn=flash_attention(given),
                mmproj=getattr(self.chat_handler, "clip_model_path", None),
                draft=None if draft is None else "ngram",
                n_draft=None if draft is None else draft.num_pred_tokens,
                model_params=model_params(given),
                context_params=context_params(given),
            )
            if given.get("lora_path"):
                adapter = LoraAdapter.load(self._llm.model, given["lora_path"])
                self._lora = {adapter: given.get("lora_scale", 1.0)}
        return self._llm

    def _trained_context(self) -> int:
        """What n_ctx=0 stands for: the model's whole context."""
        with GGUFReader(resolve(self.model_path)) as reader:
            return int(reader.metadata[f"{reader.architecture}.context_length"])

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **settings: Any) -> Self:
        """A model of the Hugging Face hub; `filename` may be a pattern such as "*q8_0.gguf".

        `local_dir` and `cache_dir` are not taken: LLCUDA_FFI_CACHE says where models are kept. `additional_files` has
        no effect: the other parts of a split model come with its first.
        """
        settings.pop("additional_files", None)
        for name in ("local_dir", "cache_dir"):
            if settings.pop(name, None):
                raise InvalidRequest(
                    f"{name} is not taken here: files are kept in the folder that LLCUDA_FFI_CACHE names"
                )
        settings.pop("local_dir_use_symlinks", None)
        return cls(resolve(f"{repo_id}:{filename}" if filename else repo_id), **settings)

    # --- completions ---

    def __call__(self, prompt: str, suffix: str | None = None, *more: Any, **settings: Any) -> Any:
        """As create_completion."""
        return self.create_completion(prompt, suffix, *more, **settings)

    def create_completion(
        self, prompt: str | Sequence[int], suffix: str | None = None, *more: Any, **settings: Any
    ) -> Any:
        """A completion as a dict, or with `stream` an iterator of dicts.

        Args:
            suffix: what comes after the completion; the model fills in what stands between.
            *more: settings without their names, in llama-cpp-python's order: max_tokens, temperature, ….
            **settings: of llama-cpp-python's create_completion.

        Raises:
            UnknownSetting: a keyword that it does not take either.
        """
        settings = {"max_tokens": 16, **named(more, COMPLETION_ORDER, settings, "create_completion")}
        stream = settings.pop("stream", False)
        params = self._params(settings, "create_completion")
        if not isinstance(prompt, str):
            listed = isinstance(prompt, Iterable) and not isinstance(prompt, bytes)
            prompt = list(prompt) if listed else []
            if not listed or not all(isinstance(token, (int, np.integer)) for token in prompt):
                raise InvalidRequest("one prompt a call, a text or token ids: llcuda_ffi.Llama.generate takes many")
        if not prompt:
            prompt = self.tokenize(b"") or [self.token_eos()]
        if params.echo and params.logprobs is not None:
            params = params.replace(prompt_logprobs=params.logprobs)
        asked: Any = prompt
        if suffix:
            if not isinstance(prompt, str):
                raise InvalidRequest("suffix goes with a prompt that is a text")
            asked, params = self.llm.infill_prompt(prompt, suffix), params.replace(echo=False)
        before = prompt if suffix and settings.get("echo") else ""
        start = 0 if params.echo else len(prompt)
        shapes = results.Completions(settings.get("model") or self.model_path, self.llm.vocab, start)
        if stream:
            return shapes.stream(self.llm.stream(asked, params))
        made = shapes.whole(self.llm.generate(asked, params))
        if suffix:
            made["choices"][0]["text"] = f"{before}{made['choices'][0]['text']}{suffix if before else ''}"
        return made

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: Any = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: Any = None,
        *more: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        **settings: Any,
    ) -> Any:
        """An answer as a dict, or with `stream` an iterator of dicts.

        Raises:
            UnknownSetting: a keyword that llama-cpp-python's create_chat_completion does not take either.
            as `chat_handler`, where that is a function of the caller's own, which then answers.
        """
        settings = named(more, CHAT_ORDER, settings, "create_chat_completion")
        asked = {"functions": functions, "function_call": function_call, "tools": tools, "tool_choice": tool_choice}
        handler, format, made = self._handler, self._format, None
        if isinstance(handler, FormatterHandler):
            made = handler.formatter(messages=messages, **asked)
            format = ChatFormat("", tuple([made.stop] if isinstance(made.stop, str) else made.stop or ()))
            settings.setdefault("stopping_criteria", made.stopping_criteria)
        elif handler is not None and not isinstance(handler, (Jinja2ChatFormatter, Llava15ChatHandler)):
            return handler(llama=self, messages=messages, **asked, **settings)
        settings = {"temperature": 0.2, "max_tokens": None, **settings}
        stream, response_format = settings.pop("stream", False), settings.pop("response_format", None)
        params = self._params(settings, "create_chat_completion")
        if format is not None:
            ends = [*params.stop_token_ids, *format.stop_token_ids]
            params = params.replace(stop=[*params.stop, *format.stop], stop_token_ids=ends)
            if not format.add_generation_prompt and add_generation_prompt is None:
                add_generation_prompt = False
        if functions:
            tools = [{"type": "function", "function": dict(one)} for one in functions]
            tool_choice = function_call["name"] if isinstance(function_call, Mapping) else function_call
        if response_format and response_format.get("type") == "json_object" and response_format.get("schema"):
            schema = {"name": "answer", "schema": response_format["schema"]}
            response_format = {"type": "json_schema", "json_schema": schema}
        options: dict[str, Any] = {
            "tools": tools,
            "tool_choice": tool_choice or "auto",
            "parallel_tool_calls": not functions,
            "response_format": response_format,
            "template": None if format is None else format.template,
            "chat_template_kwargs": chat_template_kwargs,
            "add_generation_prompt": add_generation_prompt,
        }
        model = settings.get("model") or self.model_path
        if made is not None:
            tokens = self.tokenize(made.prompt.encode(), not made.added_special, True)
            request = written.prepared(self.llm, made.prompt, tokens, params, options)
            if stream:
                return results.chat_dicts(written.stream(self.llm, request), model, bool(functions))
            return results.chat_dict(written.answer(self.llm, request), model, bool(functions))
        messages = with_tool_calls(messages)
        if stream:
            chunks = self.llm.chat_stream(messages, params, **options)
            return results.chat_dicts(chunks, model, bool(functions))
        return results.chat_dict(self.llm.chat(messages, params, **options), model, bool(functions))

    def create_chat_completion_openai_v1(self, *args: Any, **settings: Any) -> Any:
        """As create_chat_completion, as the classes of the package openai.

        Raises:
            MissingExtra: it is not installed.
        """
        try:
            types: Any = importlib.import_module("openai.types.chat")
        except ImportError:
            raise MissingExtra(
                "create_chat_completion_openai_v1 gives the classes of openai: pip install openai"
            ) from None
        made = self.create_chat_completion(*args, **settings)
        if settings.get("stream"):
            return (types.ChatCompletionChunk(**chunk) for chunk in made)
        return types.ChatCompletion(**made)

    def _params(self, settings: Mapping[str, Any], owner: str) -> Any:
        params = sampling_settings(settings, self.llm.vocab, owner)
        if settings.get("seed") is not None:
            self._seed = params.seed
        elif self._seed is not None:  # calls after each other differ, and the same ones again give the same
            self._seed = random.Random(self._seed).randrange(2**32 - 1)
            params = params.replace(seed=self._seed)
        if "last_n_tokens_size" in self._settings and "penalty_last_n" not in settings:
            params = params.replace(penalty_last_n=self.last_n_tokens_size)
        return params if self._lora is None else params.replace(lora=self._lora)

    def set_seed(self, seed: int) -> None:
        """What the seeds of the next calls are made from, where they give none; -1 draws them."""
        self._seed = drawn(seed)

    # --- facts ---

    def n_ctx(self) -> int:
        """Most tokens of a request."""
        return self.llm.n_ctx

    def n_embd(self) -> int:
        """Numbers of a vector."""
        return self.model.n_embd_out

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.model.vocab.n_tokens

    @property
    def metadata(self) -> dict[str, str]:
        """The model file's metadata as text."""
        return dict(self.model.metadata)

    # --- states ---

    def save_state(self) -> LlamaState:
        """What was computed, in memory."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            self.llm.save_state(path)
            return LlamaState(path.read_bytes(), tuple(self.eval_tokens), self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Go on from a state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            path.write_bytes(state.data)
            self.llm.load_state(path)
        self.eval_tokens, self._seed = list(state.input_ids), state.seed

    def set_cache(self, cache: Any) -> None:
        """Nothing changes: prefixes that were computed are always reused (see LlamaRAMCache)."""
        self.cache = cache

    def close(self) -> None:
        """Free the model."""
        if self._llm is not None:
            self._llm.close()
        if self._embedder is not None:
            self._embedder.close()
        if self._vocabulary is not None:
            self._vocabulary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"model_path": self.model_path, "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model_path"], **state["settings"])  # type: ignore[misc]
