"""From OpenAI's fields to SamplingParams, which checks them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import InvalidRequest
from ..params import integer, override
from ..sampling_params import SamplingParams
from .body import Fields

# fields of OpenAI's API about things that this server does not have: taken, and without effect
_WITHOUT_EFFECT = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# for the one who runs the server to say, not for a client
_NOT_OVER_HTTP = {"priority", "logprobs", "logits_processors"}
_SETTINGS = {f.name for f in dataclasses.fields(SamplingParams)} - _NOT_OVER_HTTP

_INT64 = 2**63


def sampling(fields: Fields, defaults: SamplingParams, logprobs: int | None) -> SamplingParams:
    """The settings among a request's fields; nothing else may be left.

    Raises:
        InvalidRequest: an unknown field, or a value that SamplingParams does not take.
    """
    for name in _WITHOUT_EFFECT:
        fields.take(name)
    longer = fields.take("max_completion_tokens")
    settings = fields.rest()
    if longer is not None:
        settings["max_tokens"] = longer
    for name in settings:
        if name not in _SETTINGS:
            raise InvalidRequest(f"unknown field {name!r:.60}: docs/server.md lists the fields")
    if "seed" in settings:  # OpenAI's seeds have 64 bits and a sign
        settings["seed"] = integer("seed", settings["seed"], -_INT64, _INT64 - 1) % (2**32 - 1)
    if "logit_bias" in settings:
        settings["logit_bias"] = _biases(settings["logit_bias"])
    try:
        return override(defaults, {**settings, "logprobs": logprobs})
    except (TypeError, AttributeError) as error:  # a value of a shape that no check of ours expected
        raise InvalidRequest(f"a setting is of the wrong type: {error}") from None


def _biases(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"logit_bias must be an object of token ids, not {value!r:.60}")
    out = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            raise InvalidRequest(f"logit_bias: {key!r:.60} is no token id")
        out[int(key)] = bias
    return out


def each(params: SamplingParams, n: int, seed: int) -> list[SamplingParams]:
    """Settings of n completions that are streamed side by side; they draw as one request with n does."""
    if n == 1:
        return [params]
    return [params.replace(n=1, seed=(seed + i) % (2**32 - 1)) for i in range(n)]
