"""What belongs to the process that made it."""

from __future__ import annotations

from typing import NoReturn

from ..errors import ConcurrentUseError


class OneProcess:
    """The base of what holds native memory: it is neither pickled nor copied."""

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        kind = f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
        raise ConcurrentUseError(
            f"{kind} holds memory of its process, so it cannot be pickled or copied: give another process what it "
            f"was made from (the model's name or path), and make {kind} there"
        )
