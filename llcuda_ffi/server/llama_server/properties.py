"""GET /props and /slots, GET and POST /lora-adapters."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ... import __version__
from ...errors import InvalidRequest
from ...params import integer, number, override
from ...sampling_params import SamplingParams
from ..body import Fields
from ..errors import Refused
from ..media import modalities
from ..served_model import ServedModel
from ..state import ServerState
from .settings import generation_settings


class Properties:
    """The endpoints; they are about the model of the query's or body's `model`, by default the first."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def props(self, request: Request) -> Response:
        """What the server is."""
        async with self._text(request.query_params.get("model")) as model:
            llama = model.text().llama
            return JSONResponse(
                {
                    "default_generation_settings": {
                        "n_ctx": llama.n_ctx,
                        "params": generation_settings(
                            override(SamplingParams(max_tokens=None), model.defaults), model.defaults.get("seed")
                        ),
                    },
                    "total_slots": llama.n_parallel,
                    "model_alias": model.name,
                    "model_path": llama.model.path.name,
                    "chat_template": llama.model.chat_template() or "",
                    "bos_token": _text(model, "bos"),
                    "eos_token": _text(model, "eos"),
                    "modalities": modalities(llama.media),
                    "build_info": f"llcuda_ffi {__version__}",
                    "is_sleeping": False,
                }
            )

    async def slots(self, request: Request) -> Response:
        """How many requests run: which slot has one is the scheduler's affair, so the first are shown as busy."""
        async with self._text(request.query_params.get("model")) as model:
            llama = model.text().llama
            busy = llama.metrics().running
            if request.query_params.get("fail_on_no_slot") and busy >= llama.n_parallel:
                raise Refused(503, "no slot is free", "no_slot_available")
            return JSONResponse(
                [
                    {"id": i, "n_ctx": llama.n_ctx, "speculative": False, "is_processing": i < busy}
                    for i in range(llama.n_parallel)
                ]
            )

    async def adapters(self, request: Request) -> Response:
        """The LoRA adapters, with the scales that requests have which name none; POST sets these."""
        if request.method in ("GET", "HEAD"):
            async with self._text(request.query_params.get("model")) as model:
                return JSONResponse(_adapters(model))
        fields = Fields({"adapters": await self._state.bodies.read_list(request)})
        async with self._text(request.query_params.get("model")) as model:
            names = list(model.loras)
            scales: dict[str, float] = {}
            if not names and "adapters" in fields:
                raise InvalidRequest(f"{model.name} has no adapters: start the server with --lora NAME=FILE")
            for i, item in enumerate(fields.objects("adapters", 1024) or ()):
                if set(item) - {"id", "scale"}:
                    raise InvalidRequest(f"[{i}] must have an id and a scale, nothing more")
                index = integer("id", item.get("id"), 0, len(names) - 1)
                scales[names[index]] = number("scale", item.get("scale"))
            model.lora_scales = scales
            return JSONResponse(_adapters(model))

    def _text(self, name: str | None) -> contextlib.AbstractAsyncContextManager[ServedModel]:
        return self._state.model(name, "text")


def _adapters(model: ServedModel) -> list[dict[str, Any]]:
    return [
        {"id": i, "name": name, "path": model.adapters[name].name, "scale": model.lora_scales.get(name, 0.0)}
        for i, name in enumerate(model.loras)
    ]


def _text(model: ServedModel, name: str) -> str:
    vocab = model.text().llama.vocab
    token = vocab.special(name)
    return "" if token is None else vocab.text(token)
