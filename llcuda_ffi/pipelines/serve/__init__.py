"""Ray Serve: the server's API over replicas of a model on a cluster.

    from ray import serve
    from llcuda_ffi.pipelines.serve import application

    serve.run(application("smollm2-135m", replicas=(1, 4), num_gpus=1))

Every path of `llcuda-ffi serve` answers at Ray's HTTP address. A conversation's next turn goes to the replica that has
the last one in its KV cache; a request whose replica dies is answered by another.
"""

from __future__ import annotations

from .application import application

__all__ = ["application"]
