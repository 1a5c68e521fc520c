"""The process in which libllama quantizes a file; started by quantize.py.

In: one JSON object on stdin. Out: a JSON object for each line of libllama's log, the last one with its result.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


class _Send(logging.Handler):
    """Log lines to the parent; without a parent the work has no purpose."""

    def emit(self, record: logging.LogRecord) -> None:
        level = 3 if record.levelno >= logging.WARNING else 2
        _send({"line": record.getMessage(), "level": level})


def _send(message: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)


def _main() -> None:
    job = json.load(sys.stdin)
    logger = logging.getLogger("llcuda_ffi.native")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False

    from ..bundles import InstalledBundle
    from ..errors import LlcudaError
    from ..native.load import load
    from ..native.log import listen

    given = job["bundle"]
    try:
        library = load(InstalledBundle(**{**given, "path": Path(given["path"])}))
    except LlcudaError as error:
        _send({"code": 1, "error": str(error)})
        return
    logger.addHandler(_Send())
    ffi, lib = library.ffi, library.lib
    params, keep = _params(ffi, lib, job)
    with listen():
        code = lib.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["target"]), params)
    del keep
    _send({"code": int(code)})


def _params(ffi: Any, lib: Any, job: dict[str, Any]) -> tuple[Any, list[Any]]:
    params = ffi.new("struct llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    keep: list[Any] = []
    params.nthread, params.ftype = job["n_threads"], job["ftype"]
    for name, value in {**job["flags"], **job["types"]}.items():
        setattr(params, name, value)
    if job["dry_run"]:
        params.dry_run = True
    if job["tensor_types"]:
        overrides = ffi.new("struct llama_model_tensor_override[]", len(job["tensor_types"]) + 1)
        for item, (pattern, kind) in zip(overrides, job["tensor_types"], strict=False):
            keep.append(ffi.new("char[]", pattern.encode()))
            item.pattern, item.type = keep[-1], kind
        keep.append(overrides)
        params.tt_overrides = overrides
    if job["imatrix"]:
        params.imatrix = _imatrix(ffi, job["imatrix"], keep)
    if job["prune_layers"]:
        keep.append(ffi.new("int32_t[]", [*job["prune_layers"], -1]))
        params.prune_layers = keep[-1]
    if job["kv_overrides"]:
        from ..core.model_settings import native_kv_overrides

        params.kv_overrides = native_kv_overrides(ffi, job["kv_overrides"], keep)
    return params, keep


def _imatrix(ffi: Any, path: str, keep: list[Any]) -> Any:
    import numpy as np

    with np.load(path) as file:
        names = [str(name) for name in file["names"]]
        arrays = [file[f"v{i}"] for i in range(len(names))]
    matrix = ffi.new("struct llama_model_imatrix_data[]", len(names) + 1)
    for item, name, array in zip(matrix, names, arrays, strict=False):
        keep += [ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", array), array]
        item.name, item.data, item.size = keep[-3], keep[-2], array.size
    keep.append(matrix)
    return matrix


if __name__ == "__main__":
    _main()
