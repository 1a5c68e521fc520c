"""The chat template in a tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def template_of(config: Mapping[str, Any]) -> str | None:
    """Its template: the one called "default" where it has several; None where it has none."""
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def of_config(text: str) -> str | None:
    """The template in the JSON text of a config; None where it is no such text."""
    if not text.lstrip().startswith("{") or '"chat_template"' not in text:
        return None
    try:
        config = json.loads(text)
    except ValueError:  # Jinja, that only looks like it
        return None
    return template_of(config) if isinstance(config, dict) else None
