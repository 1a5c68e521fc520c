"""A device on which libggml computes."""

from __future__ import annotations

from typing import Any

from ..core.placement import devices
from ..devices.placement import library_for
from ..errors import BackendFailure, InvalidRequest
from ..hardware.cpu import usable_cores
from ..native.handle import Handle
from ..native.load import Library


class Device(Handle):
    """A backend of the loaded libraries (ggml_backend_t). One thread at a time computes on it.

    Attributes:
        name: as libggml calls it: "CPU", "CUDA0".
        description: of the hardware.
        library: the loaded libraries.
    """

    name: str
    description: str
    library: Library

    def __init__(self, device: str = "cpu") -> None:
        """Open a device.

        Args:
            device: "cpu", "cuda" or "cuda:1", or a name of `Device.names()`.

        Raises:
            InvalidRequest: there is no such device.
            IncompatibleGpu, LoadError, BundleError: the libraries for it could not be had.
        """
        if not isinstance(device, str) or not device:
            raise InvalidRequest(f"a device is named by a text such as 'cpu' or 'cuda:0', not {device!r:.60}")
        kind, _, number = device.lower().partition(":")
        known = kind in ("cpu", "cuda")
        self.library = library_for(device.lower() if known else "auto")
        found = {one.name.upper(): one for one in devices(self.library)}
        wanted = "CPU" if kind == "cpu" else f"CUDA{number or 0}" if kind == "cuda" else device.upper()
        if wanted not in found:
            raise InvalidRequest(f"there is no device {device!r}: the loaded bundle has {', '.join(found)}")
        ffi, lib = self.library.ffi, self.library.lib
        handle = lib.ggml_backend_dev_by_name(found[wanted].name.encode())
        made, heard = self._make(lib.ggml_backend_dev_init, (handle, ffi.NULL), lib.ggml_backend_free)
        if not made:
            raise BackendFailure(f"{found[wanted].name} could not be started{heard.why()}")
        self.name, self.description = found[wanted].name, found[wanted].description
        self._device = handle
        if wanted == "CPU":
            self._set_threads(usable_cores())

    def __repr__(self) -> str:
        return f"<Device {self.name} {self.description}{' closed' if self.closed else ''}>"

    @staticmethod
    def names() -> list[str]:
        """The devices of the loaded libraries (the default ones are loaded when none are)."""
        return [one.name for one in devices(library_for("auto"))]

    def _set_threads(self, n: int) -> None:
        """libggml's CPU backend starts with four threads, whatever there is."""
        ffi, lib = self.library.ffi, self.library.lib
        registry = lib.ggml_backend_dev_backend_reg(self._device)
        address = lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        if address:
            ffi.cast("void (*)(ggml_backend_t, int)", address)(self.pointer, n)

    def supports(self, operation: Any) -> bool:
        """Whether it computes an operation, given as libggml's tensor; what it does not support ends the process."""
        return bool(self.library.lib.ggml_backend_dev_supports_op(self._device, operation))
