"""What `Llama(…, isolate=True)` is made of: the vocabulary here, the engine in a child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bundles.pins import require_linux
from ..core.model import Model
from ..core.trial import tried
from ..devices.placement import library_for
from ..errors import InvalidRequest
from ..hub.projectors import projector_of
from ..hub.references import is_pinned, resolve
from ..params import ModelParams, override
from .engine import RemoteEngine
from .media import RemoteProjector
from .wire import plain


def open_isolated(settings: Mapping[str, Any]) -> tuple[Model, RemoteEngine, RemoteProjector | None]:
    """Load a model's vocabulary into this process, on no device, and all of it into a child, with its projector if any.

    Args:
        settings: of Llama.

    Raises:
        InvalidRequest: a setting that cannot leave this process, or out of range.
        as Llama.
    """
    require_linux()
    reference = settings["model"]
    if isinstance(reference, Model):
        raise InvalidRequest("isolate=True loads the model in another process: give its path or name")
    sent = {name: plain(value) for name, value in settings.items() if name != "model"}
    path = resolve(reference)
    given = settings["model_params"] or ModelParams()
    library = library_for(settings["device"], settings["bundle"], path)
    # the child is what may die; here only the vocabulary is read, which is tried first
    trial = given.trial and settings["trial"] and not is_pinned(reference)
    params = ModelParams(vocab_only=True, devices=(), n_gpu_layers=0, kv_overrides=given.kv_overrides, trial=trial)
    vocabulary = Model.load(path, params, bundle=library.bundle)
    try:
        if settings["mmproj"] is not None:
            place = projector_of(reference, path, settings["mmproj"]).absolute()
            sent["mmproj"] = str(place)
            if place.is_file():  # else the child says so
                with tried([path], override(given, {"trial": given.trial and settings["trial"]}), projector=place):
                    pass
        remote = RemoteEngine({**sent, "model": str(path.absolute()), "trial": False})
        found = remote.ready["projector"]
        projector = RemoteProjector(remote.encode, vocabulary.vocab.n_tokens, *found) if found else None
        return vocabulary, remote, projector
    except BaseException:
        vocabulary.close()
        raise
