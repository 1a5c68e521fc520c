"""InferenceEngine: llcuda's class, in this process, or as the client of a server."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..engine.results import Completion
from ..errors import InvalidRequest, LlcudaError
from ..hub.references import resolve
from ..llama import Llama
from ..params import INT32_MAX, integer, items
from ..sampling_params import SamplingParams
from .remote import RemoteLlama

if TYPE_CHECKING:
    from typing_extensions import Self

# of what auto_configure_for_model gives: what is called otherwise here, and what only tells
_SIZES = {"batch_size": "n_batch", "ubatch_size": "n_ubatch"}
_TOLD = ("n_layers", "reason")
_SLOTS = 8  # prompts that batch_infer computes together


@dataclass
class InferResult:
    """What a request gave. `str()` is the text.

    Attributes:
        success: whether there is a text; otherwise error_message says why not.
        tokens_generated: tokens of the answer.
        latency_ms: from the call to the last token.
        tokens_per_sec: of the answer alone: the prompt's time is not in it.
    """

    success: bool
    text: str = ""
    tokens_generated: int = 0
    latency_ms: float = 0.0
    tokens_per_sec: float = 0.0
    error_message: str | None = None

    def __str__(self) -> str:
        return self.text


class InferenceEngine:
    """llcuda's engine with its names and defaults.

        engine = InferenceEngine()
        engine.load_model("gemma-3-1b-Q4_K_M")
        print(engine.infer("What is AI?", max_tokens=100).text)

    What differs: without server_url it computes in this process; nothing is asked on the terminal; a second load_model
    replaces the model; temperature=0 is greedy; infer_stream streams; batch_infer computes its prompts together.

    With server_url="http://127.0.0.1:8090" infer, infer_stream and batch_infer ask that server, which has its model
    already (ServerManager starts one).
    """

    def __init__(self, server_url: str | None = None) -> None:
        self._remote = None if server_url is None else RemoteLlama(server_url)
        self._llm: Llama | None = None
        self._later: Callable[[], Llama] | None = None
        self._lock = threading.Lock()
        self.model_path: Path | None = None
        self._latencies: deque[float]
        self._tokens: int
        self._requests: int
        self._first: float
        self._last: float
        self.reset_metrics()

    # --- the model ---

    def load_model(
        self,
        model_name_or_path: str | os.PathLike[str],
        gpu_layers: int | None = None,
        ctx_size: int | None = None,
        auto_start: bool = True,
        auto_configure: bool = True,
        n_parallel: int = 1,
        verbose: bool = True,
        interactive_download: bool = True,
        silent: bool = False,
        **settings: Any,
    ) -> bool:
        """Load a model in the place of the one before, which is unloaded first.

        Args:
            model_name_or_path: a registry name, a path, "owner/repo:file.gguf" or "hf://owner/repo/file@revision".
            gpu_layers: layers on the GPU; None puts as many as fit.
            ctx_size: longest request in tokens; None: the model's, at most 4,096.
            auto_start: False fetches the file now and loads it at the first request.
            auto_configure: False with gpu_layers=None keeps the model on the CPU.
            n_parallel: full-length requests for which the KV cache has room.
            verbose, silent: whether to print what is done (to stderr).
            interactive_download: kept for llcuda's signature. Nothing is ever asked: what is missing is fetched.
            **settings: what else auto_configure_for_model gives (batch_size, …), and further arguments of Llama.

        Returns:
            True; what goes wrong raises.

        Raises:
            ModelError, BundleError, LoadError, InvalidRequest: as Llama; or this engine asks a server.
        """
        self._own()
        told = verbose and not silent
        path = resolve(model_name_or_path, progress=None if told else False)
        self.unload_model()
        layers: Any = gpu_layers if gpu_layers is not None else "auto" if auto_configure else 0
        slots = max(integer("n_parallel", n_parallel, 1, 256), _SLOTS)
        settings = {_SIZES.get(name, name): value for name, value in settings.items() if name not in _TOLD}
        arguments: dict[str, Any] = {"n_ctx": ctx_size, "n_gpu_layers": layers, "n_parallel": slots}

        def load() -> Llama:
            llm = _open(path, {**arguments, **settings}, n_parallel)
            if told:
                placed = str(llm.model.placement) or "on the CPU"
                weights = f"{llm.model.architecture}, {llm.model.n_params / 1e6:,.0f} million weights"
                print(f"{path.name}: {weights}, n_ctx {llm.n_ctx}, {placed}", file=sys.stderr)
            return llm

        self.model_path = path
        if auto_start:
            self._llm = load()
        else:
            self._later = load
        return True

    def unload_model(self) -> None:
        """Free the model. Does nothing when there is none."""
        with self._lock:
            llm, self._llm, self._later, self.model_path = self._llm, None, None, None
        if llm is not None:
            llm.close()

    @property
    def is_loaded(self) -> bool:
        """Whether a model is there (with auto_start=False: or will be when first asked), or the server answers."""
        if self._remote is not None:
            return self._remote.healthy()
        return self._llm is not None or self._later is not None

    @property
    def llm(self) -> Llama:
        """The Llama behind this engine.

        Raises:
            InvalidRequest: no model is loaded, or this engine asks a server.
        """
        self._own()
        with self._lock:
            if self._llm is None:
                if self._later is None:
                    raise InvalidRequest("no model is loaded: call load_model() first")
                self._llm, self._later = self._later(), None
            return self._llm

    # --- requests ---

    def infer(
        self,
        prompt: str,
        max_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 40,
        seed: int = 0,
        stop_sequences: Sequence[str] | None = None,
        **settings: Any,
    ) -> InferResult:
        """Answer a prompt.

        Args:
            temperature: 0 takes the likeliest token always.
            seed: the same one gives the same text.
            stop_sequences: texts that end the answer.
            **settings: further fields of SamplingParams.

        Returns:
            a result; of a request that could not be computed with success=False.
        """
        arguments = (max_tokens, temperature, top_p, top_k, seed, stop_sequences)
        return self._infer(arguments, settings, lambda params: [self._answering.generate(_one(prompt), params)], 1)[0]

    def infer_stream(
        self, prompt: str, callback: Callable[[str], object], *arguments: Any, **settings: Any
    ) -> InferResult:
        """As `infer`, whose arguments follow; `callback` gets each piece of text as soon as it is there."""

        def compute(params: SamplingParams) -> list[Completion]:
            completion = None
            for chunk in self._answering.stream(_one(prompt), params):
                completion = chunk.completion
                if chunk.text:
                    callback(chunk.text)
            assert completion is not None
            return [completion]

        return self._infer(arguments, settings, compute, 1)[0]

    def batch_infer(self, prompts: Sequence[str], max_tokens: int = 128, **settings: Any) -> list[InferResult]:
        """Answer many prompts, computed together; results in their order.

        Raises:
            InvalidRequest: prompts is no list of them.
        """
        texts = list(items("prompts", prompts))
        return self._infer((max_tokens,), settings, lambda p: self._answering.generate(texts, p), len(texts))

    def _infer(
        self,
        arguments: Sequence[Any],
        settings: dict[str, Any],
        compute: Callable[[SamplingParams], list[Completion]],
        count: int,
    ) -> list[InferResult]:
        """`count` results of what `compute` gives; of an error of ours, failed ones."""
        began = perf_counter()
        try:
            completions = compute(_params(arguments, settings))
        except LlcudaError as error:
            spent = (perf_counter() - began) * 1e3
            return [InferResult(False, latency_ms=spent, error_message=str(error)) for _ in range(count)]
        return [self._result(completion, began) for completion in completions]

    @property
    def _answering(self) -> Llama | RemoteLlama:
        return self.llm if self._remote is None else self._remote

    def _own(self) -> None:
        if self._remote is not None:
            raise InvalidRequest(
                f"this engine asks the server at {self._remote.url}, which has its own model: make an "
                "InferenceEngine() without server_url"
            )

    def _result(self, completion: Completion, began: float) -> InferResult:
        timings, n = completion.timings, completion.usage.completion_tokens
        seconds = timings.queue_s + timings.prompt_s + timings.decode_s
        with self._lock:
            self._latencies.append(seconds * 1e3)
            self._tokens += n
            self._requests += 1
            self._first = min(self._first, began)
            self._last = perf_counter()
        return InferResult(True, completion.text, n, seconds * 1e3, timings.tokens_per_s)

    # --- metrics ---

    def get_metrics(self) -> dict[str, dict[str, float]]:
        """Latencies of the last 10,000 requests, and throughput since the first one, in llcuda's keys."""
        with self._lock:
            values = sorted(self._latencies)
            tokens, requests = self._tokens, self._requests
            wall = self._last - self._first if requests else 0.0

        def percentile(share: float) -> float:
            return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0

        return {
            "latency": {
                "mean_ms": sum(values) / len(values) if values else 0.0,
                "p50_ms": percentile(0.5),
                "p95_ms": percentile(0.95),
                "p99_ms": percentile(0.99),
                "min_ms": values[0] if values else 0.0,
                "max_ms": values[-1] if values else 0.0,
                "sample_count": len(values),
            },
            "throughput": {
                "total_tokens": tokens,
                "total_requests": requests,
                "tokens_per_sec": tokens / wall if wall > 0 else 0.0,
                "requests_per_sec": requests / wall if wall > 0 else 0.0,
            },
        }

    def reset_metrics(self) -> None:
        """Begin to count again."""
        self._latencies = deque(maxlen=10_000)
        self._tokens = self._requests = 0
        self._first, self._last = float("inf"), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload_model()


# the arguments of infer after the prompt, in its order
_DEFAULTS: dict[str, Any] = {
    "max_tokens": 128, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 0, "stop_sequences": None,
}  # fmt: skip


def _params(arguments: Sequence[Any], settings: dict[str, Any]) -> SamplingParams:
    if len(arguments) > len(_DEFAULTS):
        raise InvalidRequest(f"{len(arguments)} settings by position: there are {', '.join(_DEFAULTS)}")
    values = {**_DEFAULTS, **dict(zip(_DEFAULTS, arguments, strict=False)), **settings}
    params = SamplingParams().replace(**{"stop": values.pop("stop_sequences"), **values})
    if params.n != 1:
        raise InvalidRequest("a result has one text: n is a setting of Llama.generate")
    return params


def _one(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be a text, not {type(prompt).__name__}: batch_infer() takes a list of them")
    return prompt


def _open(path: Path, arguments: dict[str, Any], n_parallel: int) -> Llama:
    """A Llama with slots for a batch, whose KV cache has room for n_parallel requests of full length."""
    if "kv_cells" not in arguments:
        from ..engine.assembly import DEFAULT_N_CTX
        from ..gguf import GGUFReader

        with GGUFReader(path) as reader:
            trained = reader.metadata.get(f"{reader.architecture}.context_length", DEFAULT_N_CTX)
        asked = arguments["n_ctx"]
        length = min(int(trained), DEFAULT_N_CTX) if asked is None else integer("ctx_size", asked, 1, INT32_MAX)
        arguments["kv_cells"] = -(-length // 256) * 256 * n_parallel
    return Llama(path, **arguments)


def quick_infer(prompt: str, model_path: str | os.PathLike[str] | None = None, max_tokens: int = 128) -> str:
    """One answer: the model is loaded, used and unloaded. Default: the smallest model of the registry.

    Raises:
        LlcudaError: whatever went wrong.
    """
    with InferenceEngine() as engine:
        engine.load_model(model_path or "smollm2-135m", silent=True)
        result = engine.infer(prompt, max_tokens)
        if not result.success:
            raise InvalidRequest(result.error_message or "no answer")
        return result.text
