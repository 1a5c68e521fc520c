"""Going through a load and the making of contexts without memory for either (`no_alloc` of llama.h)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..native.handle import in_flight
from ..native.load import Library
from ..native.log import listen
from ..params import ContextParams, ModelParams, override
from . import context_settings as contexts
from . import model_settings as models


def dry_run(
    library: Library,
    path: Path,
    params: ModelParams,
    settings: Sequence[ContextParams],
    look: Callable[[Any], object] | None = None,
) -> list[str]:
    """Load a model's metadata and plan contexts for it; what libllama logs about it.

    Args:
        settings: of each context.
        look: called with the native model.

    Raises:
        UnsupportedByBundle: a setting that the loaded bundle lacks.
        ModelError: libllama refused the file or a context.
    """
    ffi, lib = library.ffi, library.lib
    # libllama aborts on no_alloc with memory mapping
    native, keep = models.native_params(library, override(params, {"load_mode": "NONE"}))
    native.no_alloc = True
    with in_flight(), listen() as heard:
        model = lib.llama_model_load_from_file(os.fsencode(path), native[0])
        if not model:
            raise ModelError(f"libllama could not plan a load of {path}{heard.why()}")
        try:
            if look is not None:
                look(model)
            for one in settings:
                wanted = contexts.native_params(library, one, ffi.new("char[2]"))
                context = lib.llama_init_from_model(model, wanted[0])
                if not context:
                    raise ModelError(f"libllama could not plan a context of {one.n_ctx} tokens for {path}{heard.why()}")
                lib.llama_free(context)
        finally:
            lib.llama_model_free(model)
    del keep
    return heard.lines()
