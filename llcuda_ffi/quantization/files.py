"""Quantizing model files (llama_model_quantize).

A file is quantized in a child process. libllama offers no way to stop it, and aborts the process on values that its
kernels do not expect; a child can be stopped, and its end is an exception here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .. import gguf
from ..bundles import InstalledBundle, ensure
from ..child_process import python_command
from ..enums import FType
from ..errors import Cancelled, InvalidRequest, ModelError
from ..gguf.types import BLOCKS, GGMLType
from ..hardware.cpu import usable_cores
from ..native.load import loaded
from ..native.profile import profile
from ..params import ModelParams, check_regex, flag, integer, member
from ..regular_file import written_whole
from .imatrix import imatrix_file

_HEAD = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+) +- \[([ \d,]+)\], type = +(\w+),")
_CONVERT = re.compile(r"converting to (\w+) \.\.")
_PLANNED = re.compile(r"size = .* MiB -> .* MiB \((\w+)\)")


@dataclass(frozen=True)
class QuantizePlan:
    """What a quantization makes of a file.

    Attributes:
        ftype: the file type.
        tensor_bytes: bytes of all tensors in the new file, exactly.
        source_bytes: the same in the source.
        n_params: number of weights.
        types: tensor → its type in the new file.
        needs_imatrix: whether libllama refuses to do it without an importance matrix.
        fallbacks: tensors whose rows do not fit the type asked for, and took another one.
    """

    ftype: FType
    tensor_bytes: int
    source_bytes: int
    n_params: int
    types: dict[str, GGMLType]
    needs_imatrix: bool
    fallbacks: int

    @property
    def bits_per_weight(self) -> float:
        """Bits for each weight, over all tensors."""
        return self.tensor_bytes * 8 / max(1, self.n_params)


@dataclass(frozen=True)
class Quantized(QuantizePlan):
    """A quantization that was done.

    Attributes:
        path: the new file.
        file_bytes: its size.
        seconds: what it took, start of the child process included.
    """

    path: Path
    file_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How a file is quantized (struct llama_model_quantize_params).

    Attributes:
        tensor_types: regular expression of tensor names → type, over what the file type would choose.
        output_type, embedding_type: type of the output matrix and of the token embeddings.
        imatrix: a GGUF file of llama-imatrix, or tensor name → importance of each column.
        allow_requantize: also quantize tensors that are quantized already (quality suffers).
        quantize_output: False leaves the output matrix as it is.
        pure: every matrix gets the file type's own type.
        only_copy: copy the tensors as they are.
        prune_layers: layers to leave out.
        kv_overrides: metadata to change.
        n_threads: None means the usable cores.
    """

    tensor_types: Mapping[str, GGMLType | str] | None = None
    output_type: GGMLType | str | None = None
    embedding_type: GGMLType | str | None = None
    imatrix: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None = None
    allow_requantize: bool = False
    quantize_output: bool = True
    pure: bool = False
    only_copy: bool = False
    prune_layers: Sequence[int] = ()
    kv_overrides: Mapping[str, int | float | bool | str] | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("allow_requantize", "quantize_output", "pure", "only_copy"):
            flag(name, getattr(self, name))
        for pattern, kind in (self.tensor_types or {}).items():
            if not isinstance(pattern, str) or not pattern or "\0" in pattern:
                raise InvalidRequest(f"a tensor_types pattern must be a text, not {pattern!r:.60}")
            check_regex(pattern)
            member(f"tensor_types[{pattern!r}]", kind, GGMLType)
        for name in ("output_type", "embedding_type"):
            if getattr(self, name) is not None:
                member(name, getattr(self, name), GGMLType)
        for layer in self.prune_layers:
            integer("a layer of prune_layers", layer, 0, 4096)
        if self.n_threads is not None:
            integer("n_threads", self.n_threads, 1, 512)
        ModelParams(kv_overrides=self.kv_overrides or {})  # the same rules as for loading


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    ftype: FType | str = "Q4_K_M",
    *,
    progress: Callable[[float], object] | None = None,
    bundle: InstalledBundle | None = None,
    **options: Any,
) -> Quantized:
    """Write a quantized copy of a model file. The target appears whole or not at all.

    Args:
        source: a GGUF file (F32, F16, BF16; others with allow_requantize=True); of a split model the first part.
        target: the file to write.
        ftype: "Q4_K_M", "Q8_0", … (FType).
        progress: called with the share of tensors done, 0 to 1; returning False, or raising, stops it.
        bundle: the libraries to use; None means the loaded ones, else the default.
        **options: fields of QuantizeOptions.

    Raises:
        ModelNotFound, InvalidModelFile, UnsupportedModel: the source cannot be used.
        InvalidRequest: an option is out of range, or the target is the source.
        UnsupportedByBundle: an option that the bundle's llama.cpp lacks.
        ModelError: libllama refused, or its process ended; the message carries its log.
        Cancelled: `progress` returned False.
    """
    final = Path(target)
    if final.exists() and final.samefile(source):
        raise InvalidRequest(f"the target {final} is the source itself: give another name")
    if not final.absolute().parent.is_dir():
        raise InvalidRequest(f"the target {final} must be a file in a folder that exists")
    began = perf_counter()
    with written_whole(final) as fresh:
        plan = _run(source, fresh, ftype, options, progress, bundle)
        size = fresh.stat().st_size
    values = {name: getattr(plan, name) for name in QuantizePlan.__dataclass_fields__}
    return Quantized(**values, path=final, file_bytes=size, seconds=perf_counter() - began)


def plan_quantize(
    source: str | os.PathLike[str],
    ftype: FType | str = "Q4_K_M",
    *,
    bundle: InstalledBundle | None = None,
    **options: Any,
) -> QuantizePlan:
    """What `quantize` would make of a file, without doing it (libllama's dry run).

    Raises:
        as `quantize`; UnsupportedByBundle with bundles that have no dry run.
    """
    return _run(source, None, ftype, options, None, bundle)


def _run(
    source: str | os.PathLike[str],
    target: Path | None,
    ftype: FType | str,
    settings: Mapping[str, Any],
    progress: Callable[[float], object] | None,
    bundle: InstalledBundle | None,
) -> QuantizePlan:
    unknown = set(settings) - set(QuantizeOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(QuantizeOptions.__dataclass_fields__)
        raise InvalidRequest(f"unknown option {sorted(unknown)[0]!r} of quantize: it takes {known}")
    options = QuantizeOptions(**settings)
    chosen = member("ftype", ftype, FType)
    gguf.check(source)
    library = loaded()
    if bundle is None:
        bundle = library.bundle if library is not None else ensure()
    abi = profile(bundle.profile)
    if target is None:
        abi.require("quantize_params.dry_run")
    if options.tensor_types or options.imatrix is not None or options.prune_layers or options.kv_overrides:
        abi.require("quantize_params.tt_overrides")  # before it, all four were C++ objects
    job = {
        "bundle": {**asdict(bundle), "path": str(bundle.path), "libraries": dict(bundle.libraries)},
        "source": os.fspath(source),
        "target": "" if target is None else str(target),
        "dry_run": target is None,
        "ftype": int(chosen),
        "n_threads": options.n_threads or usable_cores(),
        "flags": {
            "allow_requantize": options.allow_requantize,
            "quantize_output_tensor": options.quantize_output,
            "pure": options.pure,
            "only_copy": options.only_copy,
        },
        "types": {
            name: int(member(name, value, GGMLType))
            for name, value in (
                ("output_tensor_type", options.output_type),
                ("token_embedding_type", options.embedding_type),
            )
            if value is not None
        },
        "tensor_types": [[p, int(member(p, t, GGMLType))] for p, t in (options.tensor_types or {}).items()],
        "prune_layers": [int(layer) for layer in options.prune_layers],
        "kv_overrides": dict(options.kv_overrides or {}),
    }
    with imatrix_file(options.imatrix) as file:
        job["imatrix"] = file
        return _child(job, chosen, progress)


def _child(job: Mapping[str, Any], ftype: FType, progress: Callable[[float], object] | None) -> QuantizePlan:
    """Run the child and read what libllama says about each tensor."""
    with subprocess.Popen(
        python_command(f"{__package__}.process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the child
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            try:
                child.stdin.write(json.dumps(job))
                child.stdin.close()
            except BrokenPipeError:
                pass  # it ended at once; what it said is read below
            return _listen(child.stdout, child, job, ftype, progress)
        finally:
            child.kill()


def _listen(
    stream: IO[str],
    child: subprocess.Popen[str],
    job: Mapping[str, Any],
    ftype: FType,
    progress: Callable[[float], object] | None,
) -> QuantizePlan:
    shapes: dict[str, tuple[int, GGMLType]] = {}
    types: dict[str, GGMLType] = {}
    last: list[str] = []
    name, code, fallbacks, needs_imatrix = "", None, 0, False
    for text in stream:
        message = json.loads(text)
        if "code" in message:
            code = message["code"]
            last += [message["error"]] if message.get("error") else []
            continue
        line = message["line"]
        if head := _HEAD.search(line):
            done, total, name, ne, kind = head.groups()
            current = member("a tensor's type", kind, GGMLType)
            n = int(np.prod([int(x) for x in ne.split(",")], dtype=np.int64))
            shapes[name], types[name] = (n, current), current
            if progress is not None and progress((int(done) - 1) / int(total)) is False:
                raise Cancelled(f"quantizing {job['source']} was stopped by the progress callback")
        elif found := _CONVERT.search(line) or _PLANNED.search(line):
            types[name] = member("a tensor's type", found[1], GGMLType)
        elif message["level"] >= 3 or "failed" in line:
            fallbacks += "falling back" in line
            needs_imatrix = needs_imatrix or "will require an imatrix" in line
            last = [*last, line.strip()][-6:]
    status = child.wait()
    if code != 0:
        how = f" (its process ended with status {status})" if code is None else ""
        said = "; libllama said: " + " | ".join(line for line in last if line) if last else ""
        again = any("requantizing" in line for line in last)
        hint = "; its weights are quantized already: allow_requantize does it at a loss" if again else ""
        raise ModelError(f"{job['source']} could not be quantized to {ftype.name}{how}{said}{hint}")
    if progress is not None:
        progress(1.0)
    return QuantizePlan(
        ftype=ftype,
        tensor_bytes=sum(_nbytes(shapes[t][0], kind) for t, kind in types.items()),
        source_bytes=sum(_nbytes(n, kind) for n, kind in shapes.values()),
        n_params=sum(n for n, _ in shapes.values()),
        types=types,
        needs_imatrix=needs_imatrix,
        fallbacks=fallbacks,
    )


def _nbytes(n: int, kind: GGMLType) -> int:
    weights, size = BLOCKS[kind]
    return n // weights * size
