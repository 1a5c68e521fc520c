"""vLLM's class LLM over this engine."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ... import sampling_params as engine_params
from ...chat.methods import prepare_all
from ...core.adapter import LoraAdapter
from ...core.model import Model
from ...core.vocab import Vocab
from ...engine.beam_search import beam_search
from ...engine.media import MediaPrompt
from ...engine.prompts import Prompt, prompt_tokens, split_prompts
from ...errors import InvalidRequest, UnsupportedModel
from ...keywords import check_keywords, names_methods
from ...llama import Llama
from .media import media_prompt
from .outputs import (
    CompletionOutput,
    RequestOutput,
    request_output,
)
from .pooling import Pooling
from .sampling_params import BeamSearchParams, SamplingParams, check_params, drawn
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

# settings of vLLM's engine that have a counterpart here
_SETTINGS = {"max_model_len": "n_ctx", "max_num_seqs": "n_parallel", "max_num_batched_tokens": "n_batch"}
# taken, and without effect: the model's file, the scheduler and the placement decide these
_WITHOUT_EFFECT = (
    "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code", "dtype", "quantization", "revision",
    "tokenizer_revision", "gpu_memory_utilization", "swap_space", "cpu_offload_gb", "enforce_eager", "block_size",
    "disable_custom_all_reduce", "enable_chunked_prefill", "enable_lora", "max_loras", "max_lora_rank", "load_format",
    "disable_log_stats", "kv_cache_dtype", "task", "runner", "convert", "max_logprobs", "generation_config",
    "hf_token", "download_dir", "tensor_parallel_size", "disable_log_requests", "async_scheduling",
    "served_model_name", "limit_mm_per_prompt", "scheduling_policy", "guided_decoding_backend", "reasoning_parser",
    "max_seq_len_to_capture", "max_context_len_to_capture", "attention_backend", "distributed_executor_backend",
    "logprobs_mode", "compilation_config", "structured_outputs_config", "config_format", "mm_processor_cache_gb",
    "model_impl", "use_tqdm_on_load", "num_scheduler_steps", "multi_step_stream_outputs", "preemption_mode",
    "disable_async_output_proc", "disable_mm_preprocessor_cache", "disable_cascade_attn", "cuda_graph_sizes",
    "max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold", "max_cpu_loras",
    "lora_dtype", "fully_sharded_loras", "ignore_patterns", "model_loader_extra_config", "max_parallel_loading_workers",
    "optimization_level", "performance_mode",
)  # fmt: skip
# of vLLM's own works: taken where they say nothing
_ONLY_UNSET = (
    "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "allowed_local_media_path",
    "enable_return_routed_experts", "hf_overrides", "mm_processor_kwargs", "pooler_config", "logits_processors",
    "override_generation_config", "num_gpu_blocks_override", "rope_scaling", "rope_theta", "use_v2_block_manager",
    "worker_cls", "kv_cache_memory_bytes", "kv_transfer_config", "disable_sliding_window", "calculate_kv_scales",
    "enable_sleep_mode", "tokenizer_pool_size", "ray_workers_use_nsight", "attention_config", "hf_config_path",
    "additional_config", "profiler_config", "override_pooler_config", "enable_prompt_embeds", "kv_events_config",
    "worker_extension_cls", "distributed_init_method", "data_parallel_backend", "kv_offloading_size",
)  # fmt: skip
_SAYS_NOTHING: tuple[Any, ...] = (None, False, 0, 1, "", "auto", {}, [])


@dataclass(frozen=True)
class LoRARequest:
    """vLLM's name for an adapter: `lora_path` is a GGUF adapter here (`llcuda-ffi lora convert`)."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    long_lora_max_len: int | None = None
    base_model_name: str | None = None


def adapter(model: Model, asked: LoRARequest, loaded: dict[str, LoraAdapter]) -> LoraAdapter:
    """The adapter of a request, loaded once."""
    if asked.lora_path not in loaded:
        loaded[asked.lora_path] = LoraAdapter.load(model, asked.lora_path)
    return loaded[asked.lora_path]


def engine_settings(settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Keywords of LLM as those of Llama.

    Raises:
        UnknownSetting: one that vLLM does not take either.
        UnsupportedModel: a setting that needs several processes.
    """
    more = ("seed", "enable_prefix_caching", "device", "speculative_config", "chat_template", "mmproj", "bundle")
    check_keywords(settings, owner, [*_SETTINGS, *_WITHOUT_EFFECT, *_ONLY_UNSET, *more])
    for name in _ONLY_UNSET:
        if settings.get(name) not in _SAYS_NOTHING:
            raise UnsupportedModel(
                f"{name}={settings[name]!r:.60} is for vLLM's processes and kernels: leave it out; llcuda_ffi.Llama "
                "has n_ctx, n_parallel, kv_type, model_params and context_params"
            )
    found = {_SETTINGS[name]: value for name, value in settings.items() if name in _SETTINGS and value is not None}
    if settings.get("enable_prefix_caching") is not None:
        found["prefix_cache"] = settings["enable_prefix_caching"]
    for name in ("device", "mmproj", "bundle"):
        if settings.get(name) is not None:
            found[name] = settings[name]
    draft = settings.get("speculative_config")
    if draft:
        found["draft"] = draft["method"] if draft.get("method") in ("ngram", "mtp") else draft.get("model")
        found["n_draft"] = draft.get("num_speculative_tokens")
    return found


@names_methods
class LLM(Pooling):
    """Many prompts at once, as vLLM has it.

        llm = LLM(model="smollm2-135m")
        outputs = llm.generate(["Hello, my name is"], SamplingParams(temperature=0.8, top_p=0.95))
        print(outputs[0].outputs[0].text)

    All GPUs that there are share the model's layers, so tensor_parallel_size has no effect, and neither has
    gpu_memory_utilization: max_model_len and max_num_seqs say how much memory the KV cache takes. Images and sounds
    need `mmproj` (and `bundle`), as llcuda_ffi.Llama takes them.

    Attributes:
        model: as it was given: a GGUF file, a name of the registry, or owner/repo of a repository with GGUF files.
    """

    def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
        """Takes the keywords of vLLM's LLM; those that have no meaning here are without effect.

        Raises:
            UnknownSetting: a keyword that vLLM does not take either.
            ModelError: as llcuda_ffi.Llama.
        """
        self.model = model
        self._settings = engine_settings(settings, "LLM")
        seed = drawn(settings.get("seed"))
        self._seeds = None if seed is None else random.Random(seed)
        self._template: str | None = settings.get("chat_template")
        self._pooling = settings.get("task") in ("embed", "embedding", "score") or settings.get("runner") == "pooling"
        self._numbers = map(str, itertools.count())
        self._parts: dict[type, Any] = {}
        self._adapters: dict[str, LoraAdapter] = {}
        if not self._pooling:
            self.llama  # noqa: B018 - a model that cannot be loaded fails here

    def _part(self, kind: type, make: Callable[[], Any]) -> Any:
        if kind not in self._parts:
            self._parts[kind] = make()
        return self._parts[kind]

    @property
    def llama(self) -> Llama:
        """The Llama behind generate and chat."""
        found: Llama = self._part(Llama, lambda: Llama(self.model, **self._settings))
        return found

    @property
    def _vocab(self) -> Vocab:
        return self.llama.vocab

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: Sequence[int] | None = None,
        prompt_token_ids: Any = None,
    ) -> list[RequestOutput]:
        """Completions of prompts, in their order; a list for a single prompt too."""
        if prompts is None:
            if prompt_token_ids is None:
                raise InvalidRequest("prompts is missing")
            prompts = prompt_token_ids
        asked = [media_prompt(self.llama, one) for one in split_prompts(prompts)[0]]
        each = self._each(sampling_params, len(asked))
        adapters = lora_request if isinstance(lora_request, Sequence) else [lora_request] * len(asked)
        if len(adapters) != len(asked):
            raise InvalidRequest(f"{len(adapters)} LoRARequests for {len(asked)} prompts: give one, or one for each")
        params = []
        for i, (prompt, wanted) in enumerate(zip(asked, each, strict=True)):
            tokens = prompt_tokens(self._vocab, prompt)[0]
            cut = wanted.truncate_prompt_tokens
            if cut is not None and len(tokens) > cut:
                if isinstance(prompt, MediaPrompt):
                    raise InvalidRequest("a prompt with images or sound is not truncated: truncate_prompt_tokens=None")
                asked[i] = tokens[-cut:]
            params.append(self._here(wanted, len(asked[i]) if cut else len(tokens), self._lora(adapters[i])))
            if priority is not None:
                params[-1] = params[-1].replace(priority=-priority[i])
        done = self.llama.generate(asked, params, progress=bool(use_tqdm) and len(asked) > 1)
        return self._outputs(done)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: LoRARequest | None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to a conversation, or to a list of them."""
        conversations = messages if messages and not isinstance(messages[0], Mapping) else [messages]
        options = {
            "template": chat_template or self._template,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        # by their token ids: in a text, what a message says could be read as a control token
        asked = [prepare_all(self.llama, one, None, options)[0][0] for one in conversations]
        found = self.generate([one.prompt for one in asked], sampling_params, use_tqdm, lora_request)
        for output, one in zip(found, asked, strict=True):
            output.prompt = one.text
        return found

    def beam_search(
        self,
        prompts: Sequence[Prompt | Mapping[str, Any]],
        params: BeamSearchParams,
        lora_request: LoRARequest | Sequence[LoRARequest] | None = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The likeliest answers to each prompt, as `sequences` of each output: after the prompt, as vLLM gives them.

        Raises:
            InvalidRequest: params of another kind, or an adapter.
        """
        check_params(params, BeamSearchParams)
        if lora_request is not None:
            raise InvalidRequest("beam_search takes no adapter: generate() does")
        out = []
        for prompt in prompts:
            found = beam_search(
                self.llama,
                prompt,
                width=params.beam_width,
                max_tokens=params.max_tokens,
                length_penalty=params.length_penalty,
                ignore_eos=params.ignore_eos,
            )
            out.append(BeamSearchOutput(found, prompt_tokens(self._vocab, prompt)[0].tolist(), self._vocab))
        return out

    def get_tokenizer(self) -> Tokenizer:
        """encode, decode and apply_chat_template of the model."""
        found: Tokenizer = self._part(Tokenizer, lambda: Tokenizer(self.llama))
        return found

    def reset_prefix_cache(self) -> bool:
        """Forget what was computed."""
        self.llama.clear_cache()
        return True

    def get_default_sampling_params(self) -> SamplingParams:
        """The defaults of a request."""
        return SamplingParams()

    def close(self) -> None:
        """Free the model."""
        for part in self._parts.values():
            if not isinstance(part, Tokenizer):
                part.close()
        self._parts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None:
            params = SamplingParams()
        each = list(params) if isinstance(params, Sequence) else [params] * count
        if len(each) != count:
            raise InvalidRequest(f"{len(each)} SamplingParams for {count} prompts: give one, or one for each")
        for one in each:
            check_params(one, SamplingParams)
        return each

    def _here(self, params: SamplingParams, n_prompt: int, lora: Any) -> engine_params.SamplingParams:
        here = params.here(n_prompt, self.get_tokenizer().controls)
        if params.seed is None and self._seeds is not None:  # each request its own, the same ones in every run
            here = here.replace(seed=self._seeds.randrange(2**32 - 1))
        return here if lora is None else here.replace(lora=lora)

    def _lora(self, asked: LoRARequest | None) -> LoraAdapter | None:
        return None if asked is None else adapter(self.llama.model, asked, self._adapters)

    def _outputs(self, done: Sequence[Any]) -> list[RequestOutput]:
        return [request_output(next(self._numbers), one if isinstance(one, list) else [one]) for one in done]


@dataclass
class BeamSearchOutput:
    """The answers to one prompt, best first: each has text, tokens and cum_logprob."""

    beams: Sequence[Any]
    prompt_token_ids: list[int]
    vocab: Vocab = field(repr=False)

    @property
    def sequences(self) -> list[BeamSequence]:
        """As completions."""
        return [
            BeamSequence(
                i,
                self.vocab.detokenize([*self.prompt_token_ids, *beam.token_ids], special=True),
                [*self.prompt_token_ids, *beam.token_ids],
                beam.cumulative_logprob,
                None,
                "stop" if beam.finished else "length",
            )
            for i, beam in enumerate(self.beams)
        ]


class BeamSequence(CompletionOutput):
    """An answer of a beam search after its prompt, under vLLM's names for it too."""

    @property
    def tokens(self) -> Sequence[int]:
        """As `token_ids`."""
        return self.token_ids

    @property
    def cum_logprob(self) -> float | None:
        """As `cumulative_logprob`."""
        return self.cumulative_logprob
