"""llcuda's model registry, and the models on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import LlcudaError, ModelNotFound
from ..gguf import GGUFReader
from ..gguf import TensorInfo as GGUFTensorInfo
from ..hub import registry
from ..params import number, shown
from .engine import InferenceEngine
from .machine import GB, Folders, find_gguf_models

__all__ = [
    "GGUFTensorInfo",
    "ModelInfo",
    "ModelManager",
    "download_model",
    "get_model_recommendations",
    "inspect_gguf",
    "list_models",
    "list_registry_models",
    "load_model_smart",
]


@dataclass(frozen=True)
class ModelInfo:
    """A model file.

    Attributes:
        path: the file.
        size_gb: its size in GiB.
        architecture, name: from its metadata.
        n_layers, context_length: the same.
        file_type: the type that most of its weights have.
    """

    path: Path
    size_gb: float
    architecture: str
    name: str
    n_layers: int
    context_length: int
    file_type: str

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ModelInfo:
        """Read a file's header.

        Raises:
            ModelNotFound, InvalidModelFile: as GGUFReader.
        """
        with GGUFReader(path) as reader:
            arch = reader.architecture
            weights: dict[str, int] = {}
            for info in reader.tensors.values():
                weights[info.ggml_type.name] = weights.get(info.ggml_type.name, 0) + info.numel
            return cls(
                path=Path(path),
                size_gb=Path(path).stat().st_size / GB,
                architecture=arch,
                name=str(reader.metadata.get("general.name", Path(path).stem)),
                n_layers=int(reader.metadata.get(f"{arch}.block_count", 0)),
                context_length=int(reader.metadata.get(f"{arch}.context_length", 0)),
                file_type=max(weights, key=lambda kind: weights[kind]) if weights else "",
            )


def inspect_gguf(path: str | os.PathLike[str]) -> ModelInfo:
    """Print the metadata and the tensors of a file (`llcuda-ffi gguf` has more); returns what it is.

    Raises:
        ModelNotFound, InvalidModelFile: as GGUFReader.
    """
    with GGUFReader(path) as reader:
        for key, value in reader.metadata.items():
            print(f"{key} = {shown(value)}")
        for tensor in reader.tensors.values():
            print(f"{tensor.name}: {tensor.ggml_type.name} {tensor.shape}")
    return ModelInfo.from_file(path)


class ModelManager:
    """The models in some folders (by default the cache and the current folder)."""

    def __init__(self, directories: Folders = None) -> None:
        self.directories = directories
        self.models: list[ModelInfo] = []
        self.scan_directories()

    def scan_directories(self, directories: Folders = None) -> list[ModelInfo]:
        """Look again. Files that are no sound GGUF are left out."""
        found = []
        for path in find_gguf_models(directories or self.directories):
            try:
                found.append(ModelInfo.from_file(path))
            except LlcudaError:
                continue  # a half download, or another file with that ending: not a model
        self.models = found
        return found

    def find_by_size(self, min_gb: float = 0.0, max_gb: float = float("inf")) -> list[ModelInfo]:
        """Models of a size in GiB."""
        return [model for model in self.models if min_gb <= model.size_gb <= max_gb]

    def find_by_architecture(self, architecture: str) -> list[ModelInfo]:
        """Models of an architecture."""
        return [model for model in self.models if model.architecture == architecture.lower()]

    def get_best_for_vram(self, vram_gb: float) -> ModelInfo | None:
        """The largest model that fits with a fifth of the memory to spare, or None."""
        fitting = self.find_by_size(max_gb=vram_gb * 0.8)
        return max(fitting, key=lambda model: model.size_gb, default=None)


def list_models(directories: Folders = None) -> list[ModelInfo]:
    """The models on the disk."""
    return ModelManager(directories).models


def list_registry_models() -> dict[str, dict[str, Any]]:
    """The registry: name → repository, file, size, licence."""
    return {
        model.name: {
            "repo": model.repo,
            "file": model.file,
            "size_mb": model.estimated_size / 1e6,
            "license": model.license,
            "verified": model.sha256 is not None,
        }
        for model in registry.all_models()
    }


def get_model_recommendations(vram_gb: float = 8.0) -> list[str]:
    """Names of the registry that fit into so much memory, largest first."""
    return [model.name for model in registry.recommended(int(number("vram_gb", vram_gb, 0.0, 1e9) * GB))]


def download_model(repo_id: str, filename: str | None = None) -> Path:
    """Fetch a file of a repository, or a model of the registry by its name; where it is.

    Raises:
        ModelNotFound, DownloadError, ChecksumError: as hub.resolve.
    """
    return hub.pull(repo_id if filename is None else f"{repo_id}:{filename}")


def load_model_smart(model_name_or_path: str, **settings: Any) -> InferenceEngine:
    """An engine with a model: by name, path, repository:file, or a part of the name of a file on the disk."""
    engine = InferenceEngine()
    try:
        engine.load_model(model_name_or_path, **settings)
    except ModelNotFound:
        wanted = str(model_name_or_path).lower()
        matching = [path for path in find_gguf_models() if wanted in path.name.lower()]
        if len(matching) != 1:
            raise
        engine.load_model(matching[0], **settings)
    return engine
