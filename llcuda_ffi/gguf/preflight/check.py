"""What every load runs first: a file that would abort libllama becomes an exception here."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ...errors import UnsupportedModel
from ..reader import GGUFReader
from ..types import ValueType
from .cuda import not_on_cuda
from .hyperparameters import check_hyperparameters
from .overrides import Override
from .subject import Subject
from .vocabulary import check_vocabulary
from .weights import check_complete, check_types


@dataclasses.dataclass(frozen=True)
class GGUFReport:
    """What a checked file is.

    Attributes:
        path: the file.
        version: of the format.
        architecture: general.architecture.
        name: general.name, or None.
        n_tensors: tensors in this file.
        n_params: weights in this file.
        n_bytes: bytes of all its tensors.
        n_vocab: tokens of its vocabulary, 0 where there is none.
        types: number of tensors by type.
        split: (number, count) of the part.
        n_positions: rows of the learned position embeddings, None for models without: libllama aborts beyond.
        not_on_cuda: why it cannot be computed on CUDA, "" where nothing is known against it.
        has_mtp: whether it, or one of the parts after it, has the weights of a layer of multi-token prediction, as
            libllama computes them.
    """

    path: Path
    version: int
    architecture: str
    name: str | None
    n_tensors: int
    n_params: int
    n_bytes: int
    n_vocab: int
    types: dict[str, int]
    split: tuple[int, int]
    n_positions: int | None
    not_on_cuda: str = ""
    has_mtp: bool = False


def check(path: str | os.PathLike[str], overrides: Mapping[str, Override] | None = None) -> GGUFReport:
    """Check a model file before libllama sees it.

    Args:
        path: the file; of a model in parts the first one, or each.
        overrides: metadata that libllama will be told to take instead of the file's (kv_overrides).

    Raises:
        ModelNotFound: no such file.
        InvalidModelFile: it is broken: not a GGUF, cut short, or parts of it do not fit each other.
        UnsupportedModel: it is sound, but libllama could not run it.
    """
    with GGUFReader(path) as reader:
        if not reader.layout.native:
            raise UnsupportedModel(f"{path} is {reader.byte_order}-endian: this machine needs {sys.byteorder}-endian")
        subject = Subject(reader, overrides)
        _check_part(subject)
        check_vocabulary(subject)
        parts = _other_parts(reader)
        if reader.tensors or parts:  # a file with only a vocabulary has nothing that could run
            check_hyperparameters(subject)
        if not parts:
            check_complete(subject)
        report = dataclasses.replace(_report(reader), not_on_cuda=not_on_cuda(subject))
    for part in parts:
        with GGUFReader(part) as reader:
            _check_part(Subject(reader))
            report = dataclasses.replace(report, has_mtp=report.has_mtp or _has_mtp(reader))
    return report


def _has_mtp(reader: GGUFReader) -> bool:
    end = ".nextn.eh_proj.weight"
    layers = [name.removesuffix(end) for name in reader.tensors if name.endswith(end)]
    # libllama aborts where q, k and v of this one's are apart; of a model in parts they may be in another
    whole = reader.architecture == "mimo2" and reader.split[1] <= 1
    return any(not whole or f"{layer}.attn_qkv.weight" in reader.tensors for layer in layers)


def _check_part(subject: Subject) -> None:
    """What holds for every part of a model that was split."""
    found = subject.metadata.field("split.no")
    if found is not None and found.type != ValueType.UINT16:  # libllama reads it without looking
        subject.invalid(f"split.no must be a uint16, not {found.kind}")
    check_types(subject)


def _other_parts(reader: GGUFReader) -> list[Path]:
    """The parts after the first that libllama will open by their names; missing ones it names by itself."""
    number, count = reader.split
    ending = f"-00001-of-{count:05d}.gguf"
    if number or not 1 < count <= 0xFFFF or not reader.path.name.endswith(ending):
        return []
    stem = reader.path.name.removesuffix(ending)
    names = (f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(2, count + 1))
    return [part for part in map(reader.path.with_name, names) if part.is_file()]


def _report(reader: GGUFReader) -> GGUFReport:
    types: dict[str, int] = {}
    for info in reader.tensors.values():
        types[info.ggml_type.name] = types.get(info.ggml_type.name, 0) + 1
    tokens = reader.metadata.field("tokenizer.ggml.tokens")
    name = reader.metadata.get("general.name")
    positions = reader.tensors.get("position_embd.weight")
    return GGUFReport(
        path=reader.path,
        version=reader.version,
        architecture=reader.architecture,
        name=name if isinstance(name, str) else None,
        n_tensors=len(reader.tensors),
        n_params=sum(info.numel for info in reader.tensors.values()),
        n_bytes=sum(info.nbytes for info in reader.tensors.values()),
        n_vocab=tokens.count if tokens else 0,
        types=types,
        split=reader.split,
        n_positions=positions.ne[1] if positions else None,
        has_mtp=_has_mtp(reader),
    )
