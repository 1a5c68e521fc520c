"""Models by name: references, the registry of known models, downloads and conversions that are kept."""

from __future__ import annotations

from .references import Reference, cached, models_folder, pull, resolve

__all__ = ["Reference", "cached", "models_folder", "pull", "resolve"]
