"""An OpenAI-compatible HTTP server over AsyncLlama and Embedder (docs/server.md). Needs the extra `server`."""

from __future__ import annotations

from .app import create_app
from .models import Served
from .run import serve

__all__ = ["Served", "create_app", "serve"]
