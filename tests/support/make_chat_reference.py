"""Write tests/data/chat_templates.json: what transformers renders, as digests. Needs transformers; run by
hand.

python -m tests.support.make_chat_reference FOLDER_OF_THE_SDIST
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from .chat_conversations import VARIABLES, cases, upstream_templates, without_dates

DATA = Path(__file__).resolve().parents[1].joinpath("data") / "chat_templates.json"


def by_transformers(source: str, messages: list[dict[str, Any]], **settings: Any) -> str:
    """The rendered text; "!" and the reason where the template refuses, "!" alone where it fails."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{k: v for k, v in m.items() if v is not None} for m in messages]  # as apply_chat_template does first
    try:
        rendered, _ = render_jinja_template([chat], chat_template=source, **VARIABLES, **settings)
    except jinja2.TemplateError as error:
        return f"!{error}" if type(error) is jinja2.TemplateError else "!"
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return "!"
    return str(rendered[0])


def digest(source: str, text: str) -> str:
    """What is committed of a rendering: a refusal's text, or the start of the sha256."""
    if text.startswith("!"):
        return text
    return hashlib.sha256(without_dates(source, text).encode()).hexdigest()[:16]


if __name__ == "__main__":
    found = upstream_templates(Path(sys.argv[1]))
    table = {
        name: [digest(source, by_transformers(source, **settings)) for _, settings in cases()]
        for name, source in found.items()
    }
    DATA.parent.mkdir(exist_ok=True)
    rows = [f"{json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in table.items()]
    DATA.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
