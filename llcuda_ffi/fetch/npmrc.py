"""Which npm registry the user has configured, and the credentials for it.

No registry is named here: the environment and the user's .npmrc are asked, as npm does. A project's .npmrc is not
read: who works in a folder that others wrote would send a token, or any `${NAME}`, to whatever host it names.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

_ENVIRONMENT = re.compile(r"(?<!\\)\$\{([^${}?]+)(\??)\}")


def _expand(text: str) -> str:
    """Put in `${NAME}` from the environment as npm does: an unset name stays, `${NAME?}` becomes empty."""
    return _ENVIRONMENT.sub(
        lambda found: os.environ.get(found[1], "" if found[2] else found[0]),
        text,
    )


def parse(text: str) -> dict[str, str]:
    """Read the `key = value` lines of an .npmrc."""
    values: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;[" or "=" not in line:
            continue
        key, _, value = line.partition("=")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[_expand(key.strip())] = _expand(value)
    return values


def _environment() -> dict[str, str]:
    """npm's settings from the environment: npm_config_NAME, in any case."""
    values = {}
    for name, value in os.environ.items():
        if name.lower().startswith("npm_config_") and value:
            key = name[len("npm_config_") :]
            values[key if key.startswith(("@", "//")) else key.lower().replace("_", "-")] = value
    return values


def settings() -> dict[str, str]:
    """All settings in one mapping: the environment over the user's file."""
    environment = _environment()
    user = Path(os.path.expanduser(environment.get("userconfig", "~/.npmrc")))
    merged: dict[str, str] = {}
    # Without a home folder "~" stays as it is and would name a file below the current folder.
    if user.is_absolute():
        try:
            merged.update(parse(user.read_text(encoding="utf-8", errors="replace")))
        except OSError:
            pass  # no such file: nothing is configured there
    merged.update(environment)
    return merged


def registry_of(values: Mapping[str, str], package: str) -> str | None:
    """The registry for a package: its scope's own, else the general one; None when none is configured."""
    scope = package.partition("/")[0] if package.startswith("@") else None
    found = (values.get(f"{scope}:registry") if scope else None) or values.get("registry")
    return found.rstrip("/") if found else None


def credentials(values: Mapping[str, str], url: str) -> dict[str, str]:
    """The Authorization header for a URL: that of the longest configured `//host/path/` it lies below."""
    parts = urlsplit(url)
    where = f"//{parts.netloc}{parts.path}"
    while where.strip("/"):
        place = where.rstrip("/")
        for prefix in (f"{place}/", place):
            token = values.get(f"{prefix}:_authToken")
            if token:
                return {"Authorization": f"Bearer {token}"}
            basic = values.get(f"{prefix}:_auth")
            if basic:
                return {"Authorization": f"Basic {basic}"}
            user, password = values.get(f"{prefix}:username"), values.get(f"{prefix}:_password")
            if user and password:
                # npm keeps the password itself in base64
                plain = base64.b64decode(password + "==").decode("utf-8", "replace")
                both = base64.b64encode(f"{user}:{plain}".encode()).decode()
                return {"Authorization": f"Basic {both}"}
        where = place.rpartition("/")[0]
    return {}
