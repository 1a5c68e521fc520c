"""What `llcuda-ffi bundle tune` measured on this machine, and which bundle and layout of weights follow from it.

Speeds differ by the types of a model's weights, so a verdict is kept for each mixture of them, with the hashes of the
bundles that were measured: a bundle that was built again has to be measured again. Models without a cache (BERT) have
verdicts of their own: they only read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..bundles import InstalledBundle, installed, pins
from ..errors import InvalidModelFile
from ..fetch.cache import cache_root, disk_error, folder
from ..gguf import GGUFReader
from ..gguf.types import GGMLType
from ..hardware.cpu import cpu_features, cpu_name, usable_cores
from ..native.load import Library
from ..params import ModelParams, override
from ..regular_file import written_whole
from .speed import ANSWER, PROMPT

CLOSE = 1.03  # within this a bundle that was listed earlier is kept: the default comes first
# repacking takes these from the tiled kernels, which are faster at prompts
_TILED = (GGMLType.Q4_K, GGMLType.Q2_K)
# The newer libraries read these up to 2.4 times as fast where the processor has AVX2 and no AVX512, and half as fast
# where it has; they answer about as fast (bench/bundles.py).
_FASTER = (GGMLType.F16, GGMLType.BF16, GGMLType.Q5_K, GGMLType.Q6_K)
_NEWER = "v0.6.0-cpu"


@dataclass(frozen=True)
class Row:
    """One bundle as it was measured.

    Attributes:
        digest: of the bundle's libraries.
        repack: whether it may repack weights; None where it has nothing to repack of these types.
        prompt, answer: tokens per second; no answer of a model that only reads.
    """

    bundle: str
    digest: str
    repack: bool | None
    prompt: float
    answer: float | None

    @property
    def seconds(self) -> float:
        """The time of one turn: a prompt of 128 tokens, and an answer of 32 where there is one."""
        return PROMPT / self.prompt + (ANSWER / self.answer if self.answer else 0.0)


@dataclass(frozen=True)
class Verdict:
    """The rows of one mixture of types, in the order in which equals are preferred; with what and when."""

    model: str
    date: str
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The fastest row, or an earlier one that is as fast within 3%."""
        return _best(self.rows)

    @property
    def reading(self) -> Verdict:
        """The same for one who has texts read only: the answers do not count."""
        return replace(self, rows=tuple(replace(row, answer=None) for row in self.rows))

    def of(self, bundle: InstalledBundle) -> Row | None:
        """The best row of one bundle; None where it was not measured as it is."""
        known = digest(bundle)
        rows = [row for row in self.rows if row.digest == known]
        return _best(rows) if rows else None


def _best(rows: Sequence[Row]) -> Row:
    limit = CLOSE * min(row.seconds for row in rows)
    return next(row for row in rows if row.seconds <= limit)


def digest(bundle: InstalledBundle) -> str:
    """What tells a bundle from another build of the same name."""
    return sha256(json.dumps(sorted(bundle.libraries.items())).encode()).hexdigest()[:16]


def weight_types(path: Path) -> str:
    """The types that hold a tenth or more of a model's weights: "Q4_K+Q6_K"; "" where the file cannot be read."""
    return "+".join(sorted(kind.name for kind, share in _shares(path).items() if share >= 0.1))


def _shares(path: Path) -> dict[GGMLType, float]:
    """Type → share of the bytes of all matrices; nothing where the file cannot be read."""
    try:
        state = path.stat()
        return _shares_of(path, state.st_mtime_ns, state.st_size)
    except (InvalidModelFile, OSError):
        return {}  # the load says what is wrong with it


@lru_cache(maxsize=8)
def _shares_of(path: Path, mtime_ns: int, size: int) -> dict[GGMLType, float]:
    """The same of a file as it is: a load asks several times, and reading takes some 20 ms."""
    sizes: dict[GGMLType, int] = {}
    with GGUFReader(path) as reader:
        for tensor in reader.tensors.values():
            if tensor.n_dims > 1:
                sizes[tensor.ggml_type] = sizes.get(tensor.ggml_type, 0) + tensor.nbytes
    total = sum(sizes.values()) or 1
    return {kind: size / total for kind, size in sizes.items()}


def verdict(path: Path, *, reading: bool = False) -> Verdict | None:
    """What was measured here for the types of a model's weights.

    Args:
        reading: for one who has texts read only.
    """
    known = _read().get(_machine())
    if not known:
        return None
    types = weight_types(path)
    own = _key(types, reading=reading)
    try:
        found = known[own if own in known else types]
        kept = Verdict(found["model"], found["date"], tuple(Row(**row) for row in found["rows"]))
    except (LookupError, TypeError):
        return None
    return kept.reading if reading else kept


def keep(types: str, found: Verdict) -> Path:
    """Write a verdict into the cache; returns the file.

    Raises:
        DownloadError: the cache cannot be written.
    """
    known = _read()
    reading = all(row.answer is None for row in found.rows)
    known.setdefault(_machine(), {})[_key(types, reading=reading)] = asdict(found)
    return _write(known)


def _key(types: str, *, reading: bool) -> str:
    return f"{types}, reading" if reading else types


def forget() -> None:
    """Drop every verdict of this machine.

    Raises:
        DownloadError: the cache cannot be written.
    """
    known = _read()
    if known.pop(_machine(), None) is not None:
        _write(known)


def bundle_for(path: Path, *, reading: bool = False) -> InstalledBundle | None:
    """The bundle that was the fastest for a model's types, if it is still there as it was measured."""
    found = verdict(path, reading=reading)
    if found is None:
        return None
    best = found.best
    return next((one for one in installed() if one.name == best.bundle and digest(one) == best.digest), None)


def faster_pin(path: Path) -> str | None:
    """The pin that is known to read a model's types faster than the default one on processors like this."""
    features = cpu_features()
    if pins.default_name() != "v0.5.0-cpu" or "avx2" not in features or "avx512f" in features:
        return None
    return _NEWER if _share(path, _FASTER) > 0.5 and pins.get(_NEWER).why_unsupported() is None else None


def layout(library: Library, path: Path, params: ModelParams, *, reading: bool = False) -> tuple[ModelParams, str]:
    """Settings with `use_extra_bufts` decided where the user left it open, and why ("" where libllama decides)."""
    if params.use_extra_bufts is not None or library.bundle.backend != "cpu":
        return params, ""
    found = verdict(path, reading=reading)
    row = found.of(library.bundle) if found is not None else None
    if found is not None and row is not None:
        how = {None: "", True: ", weights repacked", False: ", weights not repacked"}[row.repack]
        note = f"bundle {row.bundle}{how}: measured with {found.model} on {found.date} (`llcuda-ffi bundle tune`)"
        return override(params, {"use_extra_bufts": row.repack}), note
    if tiled(library, path):
        note = f"weights not repacked: bundle {library.bundle.name} has faster kernels for {weight_types(path)}"
        return override(params, {"use_extra_bufts": False}), note
    if library.bundle.name == _NEWER and faster_pin(path) is not None:
        return params, f"bundle {library.bundle.name}: reads {weight_types(path)} faster on this processor"
    return params, ""


def tiled(library: Library, path: Path) -> bool:
    """Whether most of a model's weights are of types that a bundle computes faster as they are than repacked.

    AMX takes its weights by repacking too: where the processor has it, libllama decides.
    """
    if not library.has_kernel("ggml_compute_forward_mul_mat_tiled") or "amx_int8" in cpu_features():
        return False
    return _share(path, _TILED) > 0.5


def _share(path: Path, kinds: Sequence[GGMLType]) -> float:
    """The part of all matrices' bytes that some types have; 0 where the file cannot be read."""
    shares = _shares(path)
    return sum(shares.get(kind, 0.0) for kind in kinds)


def _machine() -> str:
    return f"{cpu_name()}, {usable_cores()} cores, {' '.join(cpu_features())}"


def _path() -> Path:
    return cache_root() / "tuned.json"


def _read() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(known: dict[str, dict[str, Any]]) -> Path:
    path = _path()
    folder(path.parent)
    try:
        with written_whole(path) as fresh:
            fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
    return path
