"""Every exception that llcuda_ffi raises on purpose.

    LlcudaError
    ├── BundleError                the libraries could not be had
    │   ├── BundleNotFound         no such bundle, or none installed and offline
    │   ├── DownloadError          (also ConnectionError) a transfer failed
    │   ├── ChecksumError          what arrived is not what was pinned
    │   └── UnsafeArchive          an archive member would leave its folder
    ├── LoadError                  (also ImportError) the libraries could not be used
    │   ├── AbiMismatch            the library is not of the ABI that the profile says
    │   ├── MissingLibrary         a library, or one that it needs, is not there
    │   └── IncompatibleGpu        no bundle can run on the GPU asked for
    ├── ModelError
    │   ├── ModelNotFound          (also FileNotFoundError) no such model
    │   ├── InvalidModelFile       (also ValueError) the file is broken or not a GGUF
    │   └── UnsupportedModel       the file is sound, this bundle cannot run it
    ├── InvalidRequest             (also ValueError) an argument is out of its range
    │   ├── ContextOverflow        the request does not fit the context
    │   └── UnknownSetting         (also TypeError) no setting has that name
    ├── MissingExtra               (also ImportError) a package that this needs is not installed
    ├── UnsupportedByBundle        (also NotImplementedError) the loaded bundle lacks a function
    ├── DecodeError                (also RuntimeError) a batch could not be computed
    │   ├── NoKvSlot               the KV cache has no room for the batch
    │   └── BackendFailure         the backend reported an error
    │       └── EngineFailure      the engine of a Llama stopped: a new one must be made
    ├── Cancelled                  the request was cancelled, or its deadline passed
    ├── ClosedError                (also ValueError) used after close
    └── ConcurrentUseError         (also RuntimeError) used from a second thread, after a fork, or in another process

A message says what happened, to what, and what to do next.
"""


class LlcudaError(Exception):
    """The base of every exception of this package."""


class BundleError(LlcudaError):
    """The llama.cpp libraries could not be fetched or installed."""


class BundleNotFound(BundleError, LookupError):
    """No bundle of that name, or none installed and the network is off."""


class DownloadError(BundleError, ConnectionError):
    """A transfer failed."""


class ChecksumError(BundleError):
    """What arrived, or lies in the cache, is not what was pinned."""


class UnsafeArchive(BundleError):
    """An archive member would be written outside its folder, or is no plain file."""


class LoadError(LlcudaError, ImportError):
    """The libraries are there but could not be loaded."""


class AbiMismatch(LoadError):
    """A library does not have the ABI that its profile declares."""


class MissingLibrary(LoadError):
    """A library of the bundle, or one that it needs, was not found."""


class IncompatibleGpu(LoadError):
    """No known bundle can run on the GPU that was asked for."""


class ModelError(LlcudaError):
    """A model could not be found or loaded."""


class ModelNotFound(ModelError, FileNotFoundError):
    """No such model file, registry name or repository file."""


class InvalidModelFile(ModelError, ValueError):
    """The file is not a GGUF, or is broken."""


class UnsupportedModel(ModelError):
    """The file is sound, but this bundle, or this call, cannot use it."""


class InvalidRequest(LlcudaError, ValueError):
    """An argument is of the wrong type or out of its range."""


class ContextOverflow(InvalidRequest):
    """A request needs more tokens than the context holds."""


class UnknownSetting(InvalidRequest, TypeError):
    """No setting has that name; the message names the nearest one."""


class MissingExtra(LlcudaError, ImportError):
    """A package of one of the extras is needed and not installed; the message says how to install it."""


class UnsupportedByBundle(LlcudaError, NotImplementedError):
    """The loaded bundle's llama.cpp lacks what was asked for."""


class DecodeError(LlcudaError, RuntimeError):
    """libllama could not compute a batch."""


class NoKvSlot(DecodeError):
    """The KV cache has no room for the batch."""


class BackendFailure(DecodeError):
    """The backend reported an error while computing."""


class EngineFailure(BackendFailure):
    """The engine of a Llama stopped because of an exception that nobody expected, which is its `__cause__`."""


class Cancelled(LlcudaError):
    """The request was cancelled, or its deadline passed."""


class ClosedError(LlcudaError, ValueError):
    """The object was used after it was closed."""


class ConcurrentUseError(LlcudaError, RuntimeError):
    """The object is in use by another thread, was made before a fork, or would leave its process."""
