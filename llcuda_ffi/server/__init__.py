"""An HTTP server with OpenAI's API over AsyncLlama, Embedder and Reranker (docs/server.md). Extra: `server`."""

from __future__ import annotations

from .app import create_app
from .models import Models
from .run import serve
from .served_model import ServedModel

__all__ = ["Models", "ServedModel", "create_app", "serve"]
