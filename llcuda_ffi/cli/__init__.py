"""The command `llcuda-ffi`: what is done before anything that takes time is imported."""

import io
import os
import sys


def main() -> None:
    """Run the command line. Exit codes: see `llcuda-ffi --help`."""
    try:
        _use_utf8()
        _open_closed_streams()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a model's words that the terminal's encoding lacks
        from .root import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_closed_streams() -> None:
    """Give a stream that the caller closed (`<&-`) an empty file, in place of whatever is opened next."""
    for name in ("stdin", "stdout", "stderr"):  # in this order each gets the number that it has by custom
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def _use_utf8() -> None:
    """Start over in UTF-8 mode where Python took ASCII for arguments and names of files (LC_ALL=C PYTHONUTF8=0).

    What is not ASCII would be lost in both, and in what is printed.
    """
    if sys.getfilesystemencoding() == "ascii" and os.path.basename(sys.argv[0]) in ("llcuda-ffi", "__main__.py"):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
