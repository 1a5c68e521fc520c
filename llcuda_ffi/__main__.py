"""`python -m llcuda_ffi` is the command `llcuda-ffi`."""

from .cli import main

main()
