"""Rules about tokenizer.ggml.precompiled_charsmap, the normalization table of unigram vocabularies.

It holds the byte length of a double array, the array itself (uint32, from prefixes of a text to offsets), and
the replacements, each ended by NUL. libllama walks it with every text; a step outside of it ends the process.
"""

from __future__ import annotations

import numpy as np

from ..types import ValueType
from .subject import Subject

KEY = "tokenizer.ggml.precompiled_charsmap"


def check_charsmap(subject: Subject) -> None:
    """Refuse a table in which a walk could leave the array, or end in no replacement.

    Raises:
        InvalidModelFile: such a table, or one of another type.
    """
    found = subject.metadata.field(KEY)
    if found is None:
        return
    if found.item_type not in (ValueType.UINT8, ValueType.INT8):
        subject.invalid(f"{KEY} is {found.kind}: an array of uint8 is needed")
    raw = bytes(np.asarray(subject.metadata[KEY]).view(np.uint8))
    length = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or length + 4 >= len(raw) or length < 4:
        subject.invalid(f"{KEY} has {len(raw)} bytes: too few for its array of {length} bytes and the replacements")
    array = np.frombuffer(raw, "<u4", length // 4, 4)
    if raw[-1]:
        subject.invalid(f"the last replacement of {KEY} has no end")
    if not _sound(array, len(raw) - 4 - length):
        subject.invalid(f"{KEY} is broken: a walk through its array leaves it")


def _sound(array: np.ndarray, replacements: int) -> bool:
    """Walk every path through the array at once, level by level."""
    n = len(array)
    base = (array >> 10) << ((array & (1 << 9)) >> 6)
    check = array & np.uint32((1 << 31) | 0xFF)
    leaf = (array >> 8) & 1
    letters = np.arange(1, 256, dtype=np.uint32)
    states = base[:1]
    seen = np.zeros(n, dtype=bool)
    while len(states):
        steps = states[:, None] ^ letters
        if steps.max() >= n:
            return False
        nodes = steps[check[steps] == letters]
        nodes = np.unique(nodes[~seen[nodes]])
        seen[nodes] = True
        states = nodes ^ base[nodes]
        ends = states[leaf[nodes] == 1]
        if len(ends) and (ends.max() >= n or (array[ends] & 0x7FFFFFFF).max() >= replacements):
            return False
    return True
