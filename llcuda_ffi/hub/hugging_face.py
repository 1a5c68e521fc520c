"""Files of the Hugging Face hub, through huggingface_hub (it honours HF_ENDPOINT, HF_TOKEN, proxies)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DownloadError, LlcudaError, ModelNotFound
from ..fetch.cache import disk_error, folder, offline
from ..fetch.integrity import Expected, file_sha256
from ..fetch.progress import Progress

HUB_SECONDS = 10.0


@dataclass(frozen=True)
class HubFile:
    """A file as the hub states it. `sha256` is None for the small files that the hub keeps in git."""

    repo: str
    file: str
    commit: str
    size: int
    sha256: str | None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or None


def _telling(shows: Progress) -> type:
    """The class that huggingface_hub makes its bar of: nothing is drawn, the bytes are told to `shows`."""
    from tqdm import tqdm

    bars: list[object] = []

    class Telling(tqdm):  # type: ignore[type-arg]
        """A bar that is never drawn."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            keywords.pop("name", None)
            super().__init__(*args, **{**keywords, "disable": True})
            bars.append(self)
            self.update(keywords.get("initial", 0))

        def update(self, n: float | None = 1) -> None:
            if self is bars[0]:  # a second one counts the same bytes on their way
                shows.advance(int(n or 0))

    return Telling


def _translated(error: Exception, repo: str, file: str, revision: str | None) -> Exception:
    """The one error for what the hub answered."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo} is gated: accept its terms on the hub and set HF_TOKEN to a token of your account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(f"the hub has no repository {repo}, or it is private: check the name, or set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision {revision}: name a branch, a tag or a commit of it")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelNotFound(f"{repo} has no file {file}: check the name in its list of files")
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{repo!r} is no name of a repository: write owner/name")
    cause = str(error).strip().splitlines() or [type(error).__name__]
    return DownloadError(
        f"the hub could not give {file} of {repo} ({cause[0]}): check the network and HF_ENDPOINT, "
        "or download the file yourself and give its path"
    )


def describe(repo: str, file: str, revision: str | None) -> HubFile:
    """What the hub states about a file.

    Raises:
        ModelNotFound: No such repository, revision or file.
        DownloadError: The hub cannot be reached, or the network is off.
    """
    if offline():
        raise DownloadError(f"{file} of {repo} is not in the cache and LLCUDA_FFI_OFFLINE is set: unset it")
    import huggingface_hub as hub

    try:
        url = hub.hf_hub_url(repo, file, revision=revision, endpoint=_endpoint())
        stated = hub.get_hf_file_metadata(url, timeout=HUB_SECONDS, endpoint=_endpoint())
    except Exception as error:
        raise _translated(error, repo, file, revision) from error
    if stated.commit_hash is None or stated.size is None:
        raise DownloadError(f"{_endpoint() or 'the hub'} does not answer as a model hub for {repo}: check HF_ENDPOINT")
    etag = (stated.etag or "").lower()
    is_sha256 = len(etag) == 64 and all(digit in "0123456789abcdef" for digit in etag)
    return HubFile(repo, file, stated.commit_hash, stated.size, etag if is_sha256 else None)


def files(repo: str, revision: str | None) -> list[str]:
    """The files of a repository.

    Raises:
        ModelNotFound: No such repository or revision.
        DownloadError: The hub cannot be reached, or the network is off.
    """
    if offline():
        raise DownloadError(f"no fitting file of {repo} is in the cache and LLCUDA_FFI_OFFLINE is set: unset it")
    import huggingface_hub as hub

    try:
        info = hub.HfApi(endpoint=_endpoint()).model_info(repo, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:
        raise _translated(error, repo, "its list of files", revision) from error
    return sorted(sibling.rfilename for sibling in info.siblings or ())


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a repository's revision in the cache of the Hugging Face libraries."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    named = place / "refs" / (revision or "main")
    try:
        commit = named.read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision or ""
    found = place / "snapshots" / commit
    return found if commit and os.path.isdir(found) else None  # it may be in a home that is not ours


def cached_files(repo: str, revision: str | None) -> list[str]:
    """The repository's files in the cache of the Hugging Face libraries."""
    place = _snapshot(repo, revision)
    return [] if place is None else sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())


def in_cache(repo: str, file: str, revision: str | None) -> Path | None:
    """A file in the cache of the Hugging Face libraries, which check what they download."""
    place = _snapshot(repo, revision)
    return place / file if place is not None and os.path.isfile(place / file) else None


def fetch(stated: HubFile, target: Path, expected: Expected, *, progress: bool | None = None) -> str:
    """Download a file of the hub into `target`, verified; it appears whole or not at all.

    Returns:
        Its sha256.

    Raises:
        DownloadError: The transfer failed; what has arrived is kept for the next run.
        ChecksumError: What arrived is not what was expected.
    """
    import huggingface_hub as hub

    staging = folder(target.parent / f".fetch-hub-{stated.commit[:12]}")
    try:
        with Progress(f"{stated.file} of {stated.repo}", stated.size, progress) as shows:
            path = hub.hf_hub_download(
                stated.repo,
                stated.file,
                revision=stated.commit,
                local_dir=staging,
                endpoint=_endpoint(),
                etag_timeout=HUB_SECONDS,
                tqdm_class=_telling(shows),
            )
        arrived = Path(path)
        digest = check(arrived, expected, stated)
        arrived.replace(target)
    except LlcudaError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise disk_error(error, target) from error
        raise _translated(error, stated.repo, stated.file, stated.commit) from error
    except Exception as error:
        raise _translated(error, stated.repo, stated.file, stated.commit) from error
    shutil.rmtree(staging, ignore_errors=True)
    return digest


def check(arrived: Path, expected: Expected, stated: HubFile) -> str:
    """Hash what arrived against what was pinned or what the hub stated; delete it if it differs."""
    from ..errors import ChecksumError

    digest = file_sha256(arrived)
    size = arrived.stat().st_size
    want = expected.sha256 or stated.sha256
    wanted_size = stated.size if expected.size is None else expected.size
    if size != wanted_size or (want is not None and digest != want):
        arrived.unlink()
        raise ChecksumError(
            f"{stated.file} of {stated.repo} arrived with {size:,} bytes and sha256 {digest}, expected "
            f"{wanted_size:,} bytes and {want}: nothing of it was used, try again or ask another source"
        )
    return digest
