"""Whether the default bundle loads: `python -m llcuda_ffi.native.try_load`, meant for a child process.

Prints one JSON list: the bundle, its ABI profile, the CPU variant and the backends.
"""

from __future__ import annotations

import json

from .load import load

if __name__ == "__main__":
    library = load()
    print(json.dumps([library.bundle.name, library.profile.name, library.cpu_variant, library.backends]))
