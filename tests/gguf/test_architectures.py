"""The names of architectures are libllama's own: a rule for a name that it does not have would never apply."""

from __future__ import annotations

import pytest

from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.gguf.preflight import architectures
from llcuda_ffi.native.load import core_libraries

TABLES = {
    name: set(table)
    for name, table in vars(architectures).items()
    if name.isupper() and isinstance(table, (dict, frozenset))
}


@pytest.mark.parametrize("table", TABLES)
def test_names_are_libllamas(bundle: InstalledBundle, table: str) -> None:
    """Each name stands in the library as a C string of its own."""
    if bundle.profile != "v0.5.0":
        pytest.skip("the tables were made for the default bundle")
    library = core_libraries(bundle.path, list(bundle.libraries))[-1].read_bytes()
    assert b"no-such-architecture\0" not in library
    assert {name for name in TABLES[table] if name.encode() + b"\0" not in library} == set()
