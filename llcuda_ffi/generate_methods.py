"""The methods that Llama has for prompts: from what was asked to the engine's requests, and their results."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .core.context import Context
from .core.model import Model
from .core.projector import Sound
from .core.vocab import Vocab
from .engine.adapter_turns import adapters_of
from .engine.answer_params import AnswerParams
from .engine.generation import Generation
from .engine.media import MediaPrompt
from .engine.prompts import Prompt, infill_tokens, prompt_tokens, split_prompts
from .engine.request import Request, Tokens
from .engine.results import Chunk, Completion, chunks_of_each
from .engine.sampling.chain import pick_seed
from .engine.state import Engine
from .errors import ContextOverflow, InvalidRequest, UnsupportedModel
from .fetch.progress import Progress
from .multimodal.encoder import MediaEncoder
from .params import INT32_MAX, UINT32_MAX, integer
from .sampling_params import Params, SamplingParams, params_of_each, sampling_params, with_given
from .sampling_settings import SamplingSettings
from .structured import constraint_for

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class GenerateMethods:
    """generate, stream and what they are made of, for Llama."""

    model: Model
    context: Context
    contexts: list[Context]
    engine: Engine
    n_ctx: int
    media: MediaEncoder | None
    _can_shift: bool

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary."""
        return self.model.vocab

    def tokenize_prompt(self, prompt: Prompt) -> Tokens:
        """A prompt's token ids: the model's BOS is added and control tokens in a text are read as such.

        Raises:
            InvalidRequest: an empty prompt, or ids outside the vocabulary.
        """
        return prompt_tokens(self.vocab, prompt)[0]

    def media_prompt(self, parts: Iterable[str | Any]) -> MediaPrompt:
        """A prompt of texts, images and sounds in order, for `generate` and `stream`.

            llm.generate(llm.media_prompt(["A photo: ", Path("cat.png"), " shows"]))

        Args:
            parts: a str is text; a sound is a pair (samples, rate); a path, bytes, a PIL image or an array is an image,
                or a sound where the model does not see. BOS is added, control tokens in texts are read as such.

        Raises:
            InvalidRequest: the Llama has no projector, a medium cannot be read, or the last part is no text.
        """
        if self.media is None:
            raise InvalidRequest("this Llama has no projector: Llama(model, mmproj=…)")
        if isinstance(parts, (str, bytes)) or not isinstance(parts, Iterable):
            raise InvalidRequest(
                f"a prompt with media is a list of texts, images and sounds, not {type(parts).__name__}"
            )
        found: list[Any] = []
        texts = []
        for i, part in enumerate(parts):
            if isinstance(part, str):
                found.append(self.vocab.tokenize(part, add_special=i == 0, parse_special=True))
                texts.append(part)
            else:
                kind = "audio" if isinstance(part, (tuple, Sound)) or not self.media.projector.sees else "image"
                if i == 0:
                    found.append(self.vocab.tokenize("", add_special=True))
                found.append(self.media.read(kind, part))
                texts.append(f"<{kind}>")
        return self.media.prompt(found, "".join(texts))

    def infill_prompt(self, prefix: str, suffix: str) -> Tokens:
        """The prompt by which a model fills in what stands between two texts (code models: "fill in the middle").

        Raises:
            UnsupportedModel: the model has no tokens for that.
        """
        return infill_tokens(self.vocab, prefix, suffix)

    def _request(
        self,
        tokens: Tokens,
        text: str | None,
        params: SamplingParams,
        seed: int,
        stream: bool,
        media: MediaPrompt | None = None,
    ) -> Request:
        room = self.n_ctx - len(tokens)
        if room < 1:
            raise ContextOverflow(
                # in these words clients know this error
                f"the prompt has {len(tokens)} tokens, and this model's maximum context length is {self.n_ctx} with at "
                "least one for the answer: shorten it, or take a larger n_ctx (serve --ctx)"
            )
        wanted = params.max_tokens
        if wanted is not None and wanted > room and params.overflow == "error":
            raise ContextOverflow(
                f"{len(tokens)} prompt tokens and max_tokens={wanted} exceed the context of {self.n_ctx}: lower "
                "max_tokens, take a larger n_ctx, or choose overflow='stop' or overflow='shift'"
            )
        if params.overflow == "shift":
            if media is not None:
                raise InvalidRequest("a prompt with images or sound cannot be shifted: choose overflow='stop'")
            if not self._can_shift:
                raise UnsupportedModel("this model's positions cannot be shifted: choose overflow='stop' or 'error'")
            if params.keep > self.n_ctx - 8:
                raise InvalidRequest(f"keep={params.keep} leaves nothing to shift in a context of {self.n_ctx}")
            limit = INT32_MAX if wanted is None else wanted
        else:
            limit = room if wanted is None else min(wanted, room)
        for token in params.logit_bias:
            integer("a logit_bias token", token, 0, self.vocab.n_tokens - 1)
        if params.prompt_logprobs is not None and media is not None:
            raise InvalidRequest("a prompt with images or sound has no prompt_logprobs: they are about tokens")
        if params.prompt_logprobs is not None and self.model.has_encoder:
            raise UnsupportedModel("an encoder-decoder model does not predict its prompt: no prompt_logprobs")
        constraint = constraint_for(self.model, params)
        if constraint is not None and params.ignore_eos:
            params = params.replace(ignore_eos=False)  # once the structure is complete nothing else can come
        request = Request(
            tokens,
            params,
            self.vocab,
            limit,
            seed,
            constraint=constraint,
            shown=params.shown if isinstance(params, AnswerParams) else frozenset(),
            stream=stream,
            prompt_text=text,
            media=media,
        )
        if isinstance(params, AnswerParams):
            if params.budget is not None:
                request.steps.append(params.budget.step(self.vocab))
        elif params.max_reasoning_tokens is not None:
            raise InvalidRequest("max_reasoning_tokens is for chat(): a plain prompt does not tell what is reasoning")
        if self.contexts:
            request.adapters = adapters_of(self.context, params.lora)
        return request

    def requests(
        self, prompt: Prompt, params: SamplingParams, *, stream: bool = False, begun: Iterable[Chunk] = ()
    ) -> list[Request]:
        """The n requests of one prompt, for `engine.submit`.

        Args:
            stream: whether chunks are made.
            begun: see `stream`.

        Raises:
            InvalidRequest, ContextOverflow: the prompt or a setting is not acceptable.
        """
        chunks = chunks_of_each(begun, params.n)
        tokens, text = prompt_tokens(self.vocab, prompt)
        seed = pick_seed(params)
        media = prompt if isinstance(prompt, MediaPrompt) else None
        if media is not None and self.contexts:  # with isolate=True the process that computes it looks at it
            media.check(self.model)
        first = self._request(tokens, text, params, seed, stream, media)
        requests = [first]
        for i in range(1, params.n):
            other = self._request(tokens, text, params, (seed + i) % UINT32_MAX, stream, media)
            other.follow(first, i)
            requests.append(other)
        for request in requests:
            request.resume(chunks[request.index])
        return requests

    @overload
    def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        json_schema: type[T],
        progress: bool = ...,
        **settings: Unpack[SamplingSettings],
    ) -> Completion[T | None]: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: Literal[1] = ...,
        json_schema: Any = ...,
        progress: bool = ...,
        return_exceptions: Literal[False] = ...,
        **settings: Unpack[SamplingSettings],
    ) -> Completion: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: int,
        json_schema: Any = ...,
        progress: bool = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[Completion]: ...
    @overload  # a text is an iterable of texts too: the first signature that fits is right
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: Literal[1] = ...,
        json_schema: Any = ...,
        progress: bool = ...,
        return_exceptions: Literal[False] = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompt: Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: int,
        json_schema: Any = ...,
        progress: bool = ...,
        **settings: Unpack[SamplingSettings],
    ) -> list[list[Completion]]: ...
    @overload
    def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        n: int = ...,
        json_schema: Any = ...,
        progress: bool = ...,
        return_exceptions: bool,
        **settings: Unpack[SamplingSettings],
    ) -> Any: ...
    def generate(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        progress: bool = False,
        return_exceptions: bool = False,
        **settings: Any,
    ) -> Any:
        """Generate text.

        Args:
            prompt: a text, token ids, {"prompt": …} or {"prompt_token_ids": …}; or any iterable of those (a list, a
                Series, a generator), computed together.
            params: settings for all, or a list with one for each prompt.
            progress: show how many prompts are done: a bar on a terminal or in a notebook, plain lines elsewhere.
            return_exceptions: put the exception of a prompt in the place of its result, instead of raising the first.
            **settings: fields of SamplingParams, over `params`.

        Returns:
            a Completion; for a list of prompts a list in the same order. Where n > 1, a list of n Completions in the
            place of each.

        Raises:
            InvalidRequest, ContextOverflow: a prompt or a setting is not acceptable; nothing was computed.
            DecodeError: the backend failed.
            EngineFailure: the engine stopped; a new Llama must be made.
            ClosedError, ConcurrentUseError: the Llama was closed, or made before a fork.
        """
        self.engine.check()
        generation = self.prepare(prompt, params, settings, return_exceptions=return_exceptions)
        self._run(generation.requests, progress)
        return generation.results()

    def prepare(
        self,
        prompt: Prompt | Iterable[Prompt],
        params: Params | Sequence[Params] | None,
        settings: Mapping[str, Any],
        *,
        return_exceptions: bool = False,
    ) -> Generation:
        """The first half of `generate`: tokenizes and checks, computes nothing. Any thread may do it."""
        prompts, many = split_prompts(prompt)
        generation = Generation(many=many, return_exceptions=return_exceptions)
        for one, p in zip(prompts, params_of_each(params, settings, len(prompts), many), strict=True):
            try:
                generation.add(self.requests(one, p))
            except InvalidRequest as error:
                generation.refuse(error)
        return generation

    def infill(
        self, prefix: str, suffix: str, params: Params | None = None, **settings: Unpack[SamplingSettings]
    ) -> Completion:
        """What stands between two texts, by a model that was trained for it; as `generate(infill_prompt(…))`.

        Raises:
            UnsupportedModel: the model has no tokens for that.
            as `generate` otherwise.
        """
        done: Completion = self.generate(self.infill_prompt(prefix, suffix), params, **settings)
        return done

    def _run(self, requests: Sequence[Request], progress: bool = False) -> None:
        try:
            self.engine.submit(*requests)
            with Progress("", len(requests), progress, unit="prompt") as shows:
                for request in requests:
                    if not request.done:
                        self.engine.wait(request)
                    shows.advance(1)
        except BaseException:
            self.engine.cancel(*requests)
            raise

    def stream(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        n: int | None = None,
        json_schema: Any = None,
        begun: Iterable[Chunk] = (),
        **settings: Unpack[SamplingSettings],
    ) -> Iterator[Chunk]:
        """Generate text piece by piece. Closing the iterator, or leaving its loop, cancels the request.

        Args:
            begun: chunks of an earlier stream of the same prompt and settings, also of another process, that broke
                off: this one goes on after them. Their tokens count as its own, in max_tokens, usage, penalties,
                stop strings and structured output.

        Yields:
            Chunks of whole characters; the last one has finish_reason and the Completion. With n > 1 the chunks of all
            completions as they come, `index` telling which; each has a last one.

        Raises:
            as `generate`, at the first step.
        """
        self.engine.check()
        given = with_given(settings, n=n, json_schema=json_schema)
        return self._chunks(self.requests(prompt, sampling_params(params, given), stream=True, begun=begun))

    def _chunks(self, requests: list[Request]) -> Iterator[Chunk]:
        engine = self.engine
        if len(requests) > 1:
            wake = threading.Event()
            for request in requests:
                request.wake = wake

        def ready() -> bool:
            over = True
            for request in requests:
                if request.chunks:
                    return True
                over = over and request.done
            return over

        try:
            engine.submit(*requests)
            while True:
                engine.wait(requests[0], ready)
                over = True
                for request in requests:
                    over = over and request.done  # before its chunks are taken: later there are no more
                    while (chunk := request.chunks.pop()) is not None:
                        yield chunk
                if over:
                    for request in requests:
                        request.result()
                    return
        finally:
            engine.cancel(*requests)
