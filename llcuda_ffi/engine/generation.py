"""One call of `generate`: the requests of its prompts, and what becomes of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import LlcudaError
from .request import Request


class Generation:
    """The requests of some prompts.

    Attributes:
        requests: all of them, in the order of the prompts.
    """

    def __init__(self, *, many: bool, return_exceptions: bool) -> None:
        """
        Args:
            many: whether there is a list of prompts, so that a list is the result.
            return_exceptions: whether a prompt that fails has its exception as its result.
        """
        self._many, self._return_exceptions = many, return_exceptions
        self._prompts: list[Sequence[Request] | LlcudaError] = []
        self.requests: list[Request] = []

    def add(self, requests: Sequence[Request]) -> None:
        """Add the requests of the next prompt."""
        self._prompts.append(requests)
        self.requests.extend(requests)

    def refuse(self, error: LlcudaError) -> None:
        """The next prompt cannot be computed.

        Raises:
            the error, unless exceptions are returned.
        """
        if not self._return_exceptions:
            raise (type(error)(f"prompt {len(self._prompts)}: {error}") if self._many else error) from None
        self._prompts.append(error)

    def results(self) -> Any:
        """What `generate` returns, once every request is done.

        Raises:
            what ended a request, unless exceptions are returned.
        """
        found = [self._result(prompt) for prompt in self._prompts]
        return found if self._many else found[0]

    def _result(self, prompt: Sequence[Request] | LlcudaError) -> Any:
        """What takes the place of a prompt: a Completion, n of them, or the exception that ended it."""
        if isinstance(prompt, LlcudaError):
            return prompt
        error = next((request.error for request in prompt if request.error is not None), None)
        if error is not None and self._return_exceptions:
            return error
        completions = [request.result() for request in prompt]
        return completions if len(completions) > 1 else completions[0]
