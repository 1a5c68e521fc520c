"""`python -m tests.crash FOLDER [ROW...]` runs rows in this process.

It prints JSON lines: each row's name before it starts, then its name with "" or with what went wrong. After every
row the model must still answer as before.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from . import ROWS
from .world import World


def main(folder: str, names: list[str]) -> None:
    """Run the rows."""
    world = World(Path(folder))
    for name in names or list(ROWS):
        print(json.dumps([name]), flush=True)
        wrong = ""
        try:
            ROWS[name](world)
            if world.answer() != world.expected:
                wrong = f"afterwards the model answers {world.answer()}, not {world.expected}"
        except BaseException:
            wrong = traceback.format_exc()
        print(json.dumps([name, wrong]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
