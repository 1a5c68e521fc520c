"""The application for `serve.run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InvalidRequest, MissingExtra

_MAX_BODY = 8 << 20
_MOST_IN_INGRESS = 2048


def application(
    model: str,
    *,
    replicas: int | tuple[int, int] = 1,
    parallel: int = 8,
    num_gpus: float = 0,
    num_cpus: float = 1,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    api_keys: Sequence[str] | Mapping[str, str] = (),
    ingress_replicas: int = 1,
    max_queue: int = 1024,
    max_body: int = _MAX_BODY,
) -> Any:
    """A ray.serve Application: an ingress over replicas of a text model.

    Args:
        model: a path that every node has, or a name; each node fetches it once.
        replicas: how many, or (least, most) between which Ray scales by the requests that run.
        parallel: requests that a replica computes together.
        num_gpus, num_cpus: of each replica; without a GPU it computes with num_cpus threads.
        name: how the API shows the model.
        settings: arguments of AsyncLlama.
        autoscaling: further fields of Ray's AutoscalingConfig; target_ongoing_requests is `parallel` otherwise.
        api_keys: as of `create_app`.
        ingress_replicas: processes that take HTTP requests; each knows only the prefixes that it routed itself.
        max_queue: requests that may wait for a replica; more get 503.
        max_body: largest body in bytes.

    Raises:
        MissingExtra: ray[serve] is not installed.
        InvalidRequest: a number makes no sense.
    """
    try:
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ImportError:
        raise MissingExtra("Ray Serve is not installed: pip install 'llcuda-ffi[ray,server]'") from None

    from .ingress import Ingress
    from .replica import Replica
    from .responses import Keeper

    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 <= least <= most or most < 1 or parallel < 1:
        raise InvalidRequest(f"replicas={replicas}, parallel={parallel}: give at least one of each")
    # beside a GPU HTTP has an interpreter of its own
    usual = {"isolate": True} if num_gpus else {"n_threads": max(1, int(num_cpus)), "device": "cpu"}
    made = {"n_parallel": parallel, **usual, **(settings or {})}
    scaling: dict[str, Any] = {"num_replicas": least}
    if least != most:
        scaling = {
            "autoscaling_config": {
                "target_ongoing_requests": parallel,
                **(autoscaling or {}),
                "min_replicas": least,
                "max_replicas": most,
            }
        }
    replica = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_gpus": num_gpus, "num_cpus": num_cpus},
        max_ongoing_requests=2 * parallel,  # the next ones are there when a slot is free
        request_router_config=RequestRouterConfig(
            request_router_class="llcuda_ffi.pipelines.serve.router.PrefixRouter",
            request_router_kwargs={"slack": parallel},
        ),
        health_check_period_s=5,
        **scaling,
    )
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST_IN_INGRESS,
        max_queued_requests=max_queue,
    )
    keeper = serve.deployment(
        Keeper, name="Responses", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_MOST_IN_INGRESS
    )
    options = {"api_keys": api_keys, "max_body": max_body, "max_queue": 2 * parallel}
    return ingress.bind(replica.bind(model, name, made, options, keeper.bind()), max_body)
