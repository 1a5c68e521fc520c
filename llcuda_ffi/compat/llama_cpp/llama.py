"""llama-cpp-python's class Llama over this engine's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import llama as engine
from ...chat.tools.functions import Tool
from ...core.adapter import LoraAdapter
from ...embedder import Embedder
from ...errors import InvalidRequest, UnsupportedModel
from ...hub.references import resolve
from ...keywords import check_keywords, names_methods
from . import results
from .settings import chat_template, context_params, kv_type, model_params, sampling_settings

if TYPE_CHECKING:
    from typing_extensions import Self

_KNOWN = (
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "vocab_only", "use_mmap", "use_mlock", "kv_overrides",
    "seed", "n_ctx", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "rope_scaling_type", "pooling_type",
    "attention_type", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
    "yarn_beta_slow", "yarn_orig_ctx", "logits_all", "embedding", "offload_kqv", "flash_attn", "op_offload",
    "swa_full", "no_perf", "last_n_tokens_size", "lora_scale", "lora_path", "numa", "chat_format", "draft_model",
    "type_k", "type_v", "spm_infill", "verbose",
)  # fmt: skip
_RANDOM = 0xFFFFFFFF  # llama.cpp's "draw a seed"


@dataclass(frozen=True)
class LlamaState:
    """What save_state gives: the KV cache of what was computed.

    Attributes:
        data: as llcuda_ffi.Llama.save_state writes it.
        input_ids: the tokens of `eval` and `generate`.
    """

    data: bytes
    input_ids: tuple[int, ...]


@names_methods
class Llama:
    """A model as llama-cpp-python has it: results are dicts in OpenAI's form.

        llm = Llama(model_path="model.gguf", n_ctx=2048, verbose=False)
        print(llm("Q: What is water? A:", max_tokens=32, stop=["Q:"])["choices"][0]["text"])

    Differences: all layers go to the GPU where there is one, unless n_gpu_layers says otherwise; a prefix computed
    before is always reused; `logits_all` is not needed.

    Attributes:
        llm: the llcuda_ffi.Llama behind it.
        model_path: as it was given.
    """

    def __init__(self, model_path: str | os.PathLike[str], **settings: Any) -> None:
        """Load a model; takes the keywords of llama-cpp-python's Llama.

        Raises:
            UnknownSetting: a keyword that it does not take either.
            ModelError, InvalidRequest: as llcuda_ffi.Llama.
        """
        check_keywords(settings, "Llama", _KNOWN)
        self.model_path = os.fspath(model_path)
        self.verbose = bool(settings.get("verbose", True))
        self._settings = settings
        self._template = chat_template(settings.get("chat_format"))
        seed = settings.get("seed", _RANDOM)
        self._seed = None if seed in (None, -1, _RANDOM) else int(seed)
        self._tokens: list[int] = []
        self._lora: Any = None
        self._embedder: Embedder | None = None
        self._llm: engine.Llama | None = None
        if settings.get("embedding"):
            self.model = self.embedder.model
        else:
            self.model = self.llm.model

    @property
    def llm(self) -> engine.Llama:
        """The llcuda_ffi.Llama behind it."""
        if self._llm is None:
            given = self._settings
            draft = given.get("draft_model")
            layers = given.get("n_gpu_layers")
            self._llm = engine.Llama(
                self.model_path if self._embedder is None else self._embedder.model,
                n_ctx=given.get("n_ctx", 512) or None,
                n_parallel=1,
                n_batch=given.get("n_batch"),
                n_ubatch=given.get("n_ubatch"),
                n_threads=given.get("n_threads") or "auto",
                n_gpu_layers="auto" if layers is None else layers,
                kv_type=kv_type(given),
                flash_attn=True if given.get("flash_attn") else "auto",
                draft=None if draft is None else "ngram",
                n_draft=None if draft is None else draft.num_pred_tokens,
                model_params=model_params(given),
                context_params=context_params(given),
            )
            if given.get("lora_path"):
                adapter = LoraAdapter.load(self._llm.model, given["lora_path"])
                self._lora = {adapter: given.get("lora_scale", 1.0)}
        return self._llm

    @property
    def embedder(self) -> Embedder:
        """The llcuda_ffi.Embedder behind `embed`.

        Raises:
            UnsupportedModel: it was made without embedding=True.
        """
        if self._embedder is None:
            if not self._settings.get("embedding"):
                raise UnsupportedModel("embeddings need Llama(..., embedding=True), or llcuda_ffi.Embedder(model)")
            kinds = {None: None, -1: None, 0: None, 1: "mean", 2: "cls", 3: "last"}
            pooling = kinds.get(self._settings.get("pooling_type"))
            self._embedder = Embedder(self.model_path, pooling=pooling, model_params=model_params(self._settings))
        return self._embedder

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **settings: Any) -> Self:
        """A model of the Hugging Face hub; `filename` may be a pattern such as "*q8_0.gguf".

        `local_dir` and `cache_dir` are not taken: LLCUDA_FFI_CACHE says where models are kept.
        """
        for name in ("local_dir", "cache_dir", "additional_files"):
            if settings.pop(name, None):
                raise InvalidRequest(
                    f"{name} is not taken here: files are kept in the folder that LLCUDA_FFI_CACHE names"
                )
        settings.pop("local_dir_use_symlinks", None)
        return cls(resolve(f"{repo_id}:{filename}" if filename else repo_id), **settings)

    # --- completions ---

    def __call__(self, prompt: str, suffix: str | None = None, **settings: Any) -> Any:
        """As create_completion."""
        return self.create_completion(prompt, suffix, **settings)

    def create_completion(
        self, prompt: str | Sequence[int], suffix: str | None = None, *, stream: bool = False, **settings: Any
    ) -> Any:
        """A completion as a dict, or with `stream` an iterator of dicts.

        Args:
            suffix: what comes after the completion; the model fills in what stands between.
            **settings: of llama-cpp-python's create_completion.

        Raises:
            UnknownSetting: a keyword that it does not take either.
        """
        settings.setdefault("max_tokens", 16)
        params = self._params(settings, "create_completion")
        if params.echo and params.logprobs is not None:
            params = params.replace(prompt_logprobs=params.logprobs)
        asked: Any = prompt
        if suffix:
            if not isinstance(prompt, str):
                raise InvalidRequest("suffix goes with a prompt that is a text")
            asked, params = self.llm.infill_prompt(prompt, suffix), params.replace(echo=False)
        before = prompt if suffix and settings.get("echo") else ""
        shapes = results.Completions(settings.get("model") or self.model_path, self.llm.vocab)
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
        *,
        response_format: Mapping[str, Any] | None = None,
        stream: bool = False,
        **settings: Any,
    ) -> Any:
        """An answer as a dict, or with `stream` an iterator of dicts.

        Raises:
            UnknownSetting: a keyword that llama-cpp-python's create_chat_completion does not take either.
        """
        settings = {"temperature": 0.2, "max_tokens": None, **settings}
        params = self._params(settings, "create_chat_completion")
        if functions:
            tools = [{"type": "function", "function": dict(one)} for one in functions]
            tool_choice = function_call["name"] if isinstance(function_call, Mapping) else function_call
        if response_format and response_format.get("type") == "json_object" and response_format.get("schema"):
            schema = {"name": "answer", "schema": response_format["schema"]}
            response_format = {"type": "json_schema", "json_schema": schema}
        options: dict[str, Any] = {
            "tools": tools,
            "tool_choice": tool_choice or "auto",
            "response_format": response_format,
            "template": self._template,
        }
        if stream:
            return results.chat_dicts(self.llm.chat_stream(messages, params, **options))
        return results.chat_dict(self.llm.chat(messages, params, **options), bool(functions))

    def _params(self, settings: Mapping[str, Any], owner: str) -> Any:
        params = sampling_settings(settings, self.llm.vocab, owner)
        if params.seed is None and self._seed is not None:
            params = params.replace(seed=self._seed)
        return params if self._lora is None else params.replace(lora=self._lora)

    def set_seed(self, seed: int) -> None:
        """The seed of what comes, where a call gives none."""
        self._seed = seed

    # --- embeddings ---

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """Embeddings as a dict in OpenAI's form; not normalized."""
        texts = [input] if isinstance(input, str) else list(input)
        vectors, n_tokens = self.embed(texts, return_count=True)
        return results.embedding_dict(model or self.model_path, vectors, n_tokens)

    def embed(
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Embeddings as lists of numbers: one, or one for each text."""
        vectors = self.embedder.encode(input, normalize=normalize, truncate=truncate).tolist()
        if not return_count:
            return vectors
        texts = [input] if isinstance(input, str) else input
        return vectors, sum(min(len(self.embedder.tokenize(text)), self.embedder.max_tokens) for text in texts)

    # --- tokens ---

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text."""
        tokens: list[int] = self.model.vocab.tokenize(text, add_special=add_bos, parse_special=special).tolist()
        return tokens

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """What token ids write; with `prev_tokens`, after those."""
        vocab = self.model.vocab
        written = b"".join(vocab.piece(int(token), special=special) for token in tokens)
        starts = prev_tokens is None and len(tokens) > 0 and int(tokens[0]) == vocab.bos
        return written[1:] if starts and written.startswith(b" ") else written

    def token_bos(self) -> int:
        """The beginning-of-sequence token; -1 where there is none."""
        return -1 if self.model.vocab.bos is None else self.model.vocab.bos

    def token_eos(self) -> int:
        """The end-of-sequence token; -1 where there is none."""
        return -1 if self.model.vocab.eos is None else self.model.vocab.eos

    def token_nl(self) -> int:
        """The newline token; -1 where there is none."""
        found = self.model.vocab.special("nl")
        return -1 if found is None else found

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

    # --- token by token ---

    @property
    def n_tokens(self) -> int:
        """How many tokens `eval` was given since `reset`."""
        return len(self._tokens)

    def reset(self) -> None:
        """Start a new sequence for `eval`."""
        self._tokens.clear()

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute tokens after those before."""
        self.llm.generate([*self._tokens, *tokens], max_tokens=0)
        self._tokens += map(int, tokens)

    def sample(self, **settings: Any) -> int:
        """The next token after what `eval` was given; it is not added."""
        params = self._params({**settings, "max_tokens": 1}, "sample")
        token: int = self.llm.generate(list(self._tokens), params).token_ids[0]
        return token

    def generate(
        self, tokens: Sequence[int], *, reset: bool = True, **settings: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens that follow, one by one, without an end; what is sent to the generator is added before the next."""
        if reset:
            self.reset()
        self.eval(tokens)
        while True:
            token = self.sample(**settings)
            sent = yield token
            self._tokens.append(token)
            self._tokens += sent or []

    # --- states ---

    def save_state(self) -> LlamaState:
        """What was computed, in memory."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            self.llm.save_state(path)
            return LlamaState(path.read_bytes(), tuple(self._tokens))

    def load_state(self, state: LlamaState) -> None:
        """Go on from a state."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            path.write_bytes(state.data)
            self.llm.load_state(path)
        self._tokens = list(state.input_ids)

    def set_cache(self, cache: Any) -> None:
        """Nothing changes: prefixes that were computed are always reused (see LlamaRAMCache)."""
        self.cache = cache

    def close(self) -> None:
        """Free the model."""
        if self._llm is not None:
            self._llm.close()
        if self._embedder is not None:
            self._embedder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"model_path": self.model_path, "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model_path"], **state["settings"])  # type: ignore[misc]
