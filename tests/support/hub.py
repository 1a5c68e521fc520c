"""A hub that speaks the Hugging Face hub's protocol, on the loopback server."""

from __future__ import annotations

import hashlib
from collections import deque
from pathlib import Path

from llcuda_ffi import hub

from .loopback import Loopback, Served

COMMIT = "c0ffee" * 6 + "c0ff"
REPO = "owner/some-GGUF"
CONTENT = b"GGUF" + hashlib.shake_256(b"model").digest(400_000)


class Hub:
    """A hub on the loopback server: files of one repository at one commit, also named `main`."""

    def __init__(self, server: Loopback) -> None:
        self.server = server

    def put(self, file: str, content: bytes = CONTENT, *, sha256: str | None = None, **how: object) -> Served:
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{sha256 or hashlib.sha256(content).hexdigest()}"',
        }
        served = self.server.put(f"/{REPO}/resolve/{COMMIT}/{file}", content, headers=headers, **how)
        self.server.files[f"/{REPO}/resolve/main/{file}"] = served
        return served

    def fail(self, code: str, status: int = 404) -> None:
        for revision in ("main", COMMIT, "v9"):
            for file in ("model.gguf", "missing.gguf"):
                self.server.put(
                    f"/{REPO}/resolve/{revision}/{file}",
                    b"",
                    statuses=deque([status] * 20),
                    headers={"X-Error-Code": code},
                )

    def asked(self, file: str) -> int:
        return sum(request.path.endswith("/" + file) for request in self.server.requests)


def resolve(reference: str) -> Path:
    """The file of a reference, without a progress bar."""
    return hub.resolve(reference, progress=False)
