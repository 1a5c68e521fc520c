"""From a request's fields to SamplingParams, which checks them. Takes the names of OpenAI, llama.cpp and vLLM."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..core.adapter import LoraAdapter
from ..errors import InvalidRequest
from ..params import integer, number, override, shown
from ..sampling_params import SamplingParams
from .body import whole
from .sampling_names import INSTEAD, NEUTRAL, OTHER_NAMES, REFUSED, SAMPLER_LETTERS, SAMPLER_OFF, WITHOUT_EFFECT
from .served_model import ServedModel
from .state import Asked

# for the one who runs the server to say, or not of JSON's types
_NOT_OVER_HTTP = {"priority", "logprobs", "prompt_logprobs", "echo", "logits_processors", "stopping_criteria", "lora"}
_SETTINGS = {f.name for f in dataclasses.fields(SamplingParams)} - _NOT_OVER_HTTP
_INTEGERS = {f.name for f in dataclasses.fields(SamplingParams) if f.type in ("int", "int | None")}
_KNOWN = frozenset(_SETTINGS | OTHER_NAMES.keys() | WITHOUT_EFFECT | NEUTRAL.keys())

_INT64 = 2**63
_MOST_STOPS, _LONGEST_STOP = 16, 256
_MOST_BIASES = 4096


def sampling(asked: Asked, defaults: SamplingParams, logprobs: int | None, **renamed: Any) -> SamplingParams:
    """The settings among a request's fields; nothing else may be left.

    Args:
        defaults: of the endpoint; those of the model (`serve --default`) come before them.
        **renamed: settings that came under names of the endpoint's own; None where they did not.

    Raises:
        InvalidRequest: an unknown field, or a value that SamplingParams does not take.
    """
    fields, model = asked.fields, asked.model
    given = fields.rest()
    settings = {name: _value(name, value) for name, value in renamed.items() if value is not None}
    for name in [n for n in given if n not in WITHOUT_EFFECT]:
        meant = OTHER_NAMES.get(name, name)
        if meant in _SETTINGS:
            value = _value(meant, given[name])
            if settings.setdefault(meant, value) != value:
                if name == meant:
                    raise InvalidRequest(f"{name} must be {shown(settings[name])} here, not {shown(value)}")
                raise InvalidRequest(f"{name} and {meant} say different things: send one")
            del given[name]
    given = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    settings |= _samplers(given.pop("samplers", None))
    settings |= _structured(given.pop("structured_outputs", None))
    limit_ms = given.pop("t_max_predict_ms", 0)
    if limit_ms and number("t_max_predict_ms", limit_ms, -1) > 0:
        settings["timeout"] = limit_ms / 1000
    lora = _adapters(given.pop("lora", None), model, asked.name)
    for name in list(given):
        if name in REFUSED:
            raise InvalidRequest(f"{name} is not supported: {REFUSED[name]}")
        if name in NEUTRAL:
            (allowed, why), value = NEUTRAL[name], given.pop(name)
            if value not in allowed:
                raise InvalidRequest(f"{name}={value!r:.60} is not supported: {why}")
    fields.check(given, _KNOWN, INSTEAD)
    _translate(settings, model)
    try:
        return override(defaults, {**model.defaults, **settings, "logprobs": logprobs, "lora": lora})
    except (TypeError, AttributeError) as error:  # a value of a shape that no check of ours expected
        raise InvalidRequest(f"a setting is of the wrong type: {error}") from None


def _translate(settings: dict[str, Any], model: ServedModel) -> None:
    """Bring values that have other forms over HTTP to those of SamplingParams, in place."""
    if settings.get("max_tokens") in (-1, -2):  # llama.cpp's: without end, until the context is full
        settings["max_tokens"] = None
    if settings.get("max_reasoning_tokens") == -1:
        del settings["max_reasoning_tokens"]
    if settings.get("top_k") == -1:
        settings["top_k"] = 0
    if "seed" in settings:  # OpenAI's seeds have 64 bits and a sign; llama.cpp's -1 draws one
        seed = integer("seed", settings["seed"], -_INT64, _INT64 - 1)
        settings["seed"] = None if seed == -1 else seed % (2**32 - 1)
    if "logit_bias" in settings:
        settings["logit_bias"] = _biases(settings["logit_bias"], model)
    if "stop" in settings:
        settings["stop"] = _stops(settings["stop"])
    schema = settings.get("json_schema")
    if schema is not None and not isinstance(schema, (dict, str, bool)):
        raise InvalidRequest(f"json_schema must be an object, not {schema!r:.60}")


def _value(name: str, value: Any) -> Any:
    return whole(value) if name in _INTEGERS else value


def _stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise InvalidRequest(f"stop must be a text or a list of texts, not {value!r:.60}")
    texts = [t for t in texts if t]
    if len(texts) > _MOST_STOPS or any(len(t) > _LONGEST_STOP for t in texts):
        raise InvalidRequest(f"stop may hold {_MOST_STOPS} texts of {_LONGEST_STOP} characters")
    return texts


def _biases(value: Any, model: ServedModel) -> dict[int, float]:
    """An object of token ids or texts, or a list of [token id or text, bias]; false bans a token."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > _MOST_BIASES:
        raise InvalidRequest(f"logit_bias must be an object of up to {_MOST_BIASES} token ids, not {value!r:.60}")
    vocab, out = model.text().llama.vocab, {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidRequest(f"logit_bias: {pair!r:.60} is no pair of a token and a bias")
        key, bias = pair
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11:
            tokens = [int(key)]
        elif isinstance(key, str):
            tokens = vocab.tokenize(key[:1000], add_special=False, parse_special=True).tolist()
        elif type(key) is int:
            tokens = [key]
        else:
            raise InvalidRequest(f"logit_bias: {key!r:.60} is no token id")
        for token in tokens:
            out[token] = -math.inf if bias is False else bias
    return out


def _samplers(value: Any) -> dict[str, Any]:
    """llama.cpp's list of samplers, or their letters. Those that it does not name are off; their order is fixed."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = [SAMPLER_LETTERS.get(letter, letter) for letter in value]
    if not isinstance(value, list) or not all(isinstance(n, str) for n in value):
        raise InvalidRequest(f"samplers must be a list of names, not {value!r:.60}")
    unknown = [name for name in value if name not in SAMPLER_OFF]
    order = [name for name in SAMPLER_OFF if name in value]
    if unknown or order != value:
        raise InvalidRequest(f"samplers run in this order, each once: {', '.join(SAMPLER_OFF)}; not {value!r:.200}")
    return {field: off for name in SAMPLER_OFF if name not in value for field, off in SAMPLER_OFF[name].items()}


def _structured(value: Any) -> dict[str, Any]:
    """vLLM's structured_outputs."""
    if value is None:
        return {}
    names = {"json": "json_schema", "regex": "regex", "choice": "choices", "grammar": "grammar"}
    if not isinstance(value, dict):
        raise InvalidRequest(f"structured_outputs must be an object, not {value!r:.60}")
    given = {name: v for name, v in value.items() if v is not None}
    if given.pop("json_object", None):
        given["json"] = {"type": "object"}
    for name in given:
        if name not in names:
            raise InvalidRequest(f"structured_outputs: {name!r:.60} is not one of {', '.join(names)}, json_object")
    return {names[name]: v for name, v in given.items()}


def _adapters(value: Any, model: ServedModel, asked: object) -> dict[LoraAdapter, float] | None:
    """llama.cpp's list of {"id", "scale"}; ids are those of GET /lora-adapters. None: those set for all requests."""
    loaded = list(model.loras.items())
    scales = {asked: 1.0} if isinstance(asked, str) and asked in model.loras else model.lora_scales
    if value is not None:
        if not isinstance(value, list):
            raise InvalidRequest(f"lora must be a list of objects with id and scale, not {value!r:.60}")
        if value and not loaded:
            raise InvalidRequest(f"{model.name} has no adapters: start the server with --lora NAME=FILE")
        scales = {}
        for item in value:
            if not isinstance(item, dict) or set(item) - {"id", "scale"}:
                raise InvalidRequest(f"lora: {item!r:.60} is no object of id and scale")
            index = integer("lora's id", item.get("id"), 0, len(loaded) - 1)
            scales[loaded[index][0]] = number("lora's scale", item.get("scale", 1.0))
    return {adapter: scales[name] for name, adapter in loaded if scales.get(name)} or None
