"""llama-cpp-python's server is another program here."""

from __future__ import annotations

from ...errors import InvalidRequest

raise InvalidRequest("python -m llama_cpp.server is here: llcuda-ffi serve MODEL (docs/server.md)")
