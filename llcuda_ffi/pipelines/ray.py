"""Ray Data: texts of a data set embedded or continued on a cluster, one model for each actor.

    import ray
    from llcuda_ffi.pipelines.ray import embed_dataset

    vectors = embed_dataset(ray.data.read_parquet("texts"), "text", "all-minilm-l6-v2", concurrency=4)

Bundle and model are installed once on each node: the first actor there fetches them under a lock, the others wait.
Ray starts lost actors again and repeats their blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..embedder import Embedder
from ..llama import Llama

Batch = dict[str, npt.NDArray[Any]]


class EmbedActor:
    """For `Dataset.map_batches`: adds a column with the vectors of a column of texts."""

    def __init__(
        self,
        model: str,
        column: str = "text",
        output: str = "embedding",
        embedder: Mapping[str, Any] | None = None,
        encode: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: a path that every node has, or a name.
            embedder: arguments of Embedder.
            encode: arguments of Embedder.encode.
        """
        self._embedder = Embedder(model, **(embedder or {}))
        self._column, self._output, self._options = column, output, dict(encode or {})

    def __call__(self, batch: Batch) -> Batch:
        texts = [str(text) for text in batch[self._column]]
        return {**batch, self._output: self._embedder.encode(texts, show_progress=False, **self._options)}


class GenerateActor:
    """For `Dataset.map_batches`: adds a column with the continuations of a column of prompts."""

    def __init__(
        self,
        model: str,
        column: str = "prompt",
        output: str = "completion",
        llama: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            llama: arguments of Llama.
            sampling: arguments of Llama.generate.
        """
        self._llama = Llama(model, **(llama or {}))
        self._column, self._output, self._sampling = column, output, dict(sampling or {})

    def __call__(self, batch: Batch) -> Batch:
        prompts = [str(prompt) for prompt in batch[self._column]]
        made = self._llama.generate(prompts, **self._sampling)
        texts = np.array([completion.text for completion in made], dtype=object)
        return {**batch, self._output: texts}


def embed_dataset(
    dataset: Any,
    column: str,
    model: str,
    *,
    output: str = "embedding",
    num_gpus: float = 0,
    num_cpus: float = 1,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 1024,
    embedder: Mapping[str, Any] | None = None,
    **encode: Any,
) -> Any:
    """A Ray data set with the vectors of a column of texts.

    Args:
        dataset: a ray.data.Dataset.
        column, output: the columns read and added.
        model: a path that every node has, or a name.
        num_gpus, num_cpus: of each actor.
        concurrency: actors, or (least, most).
        batch_size: rows of one call.
        embedder: arguments of Embedder; without them an actor computes with `num_cpus` contexts of one thread each.
        encode: arguments of Embedder.encode.
    """
    made = dict(embedder or {})
    if not num_gpus:
        made.setdefault("n_contexts", max(1, int(num_cpus)))
        made.setdefault("n_threads", 1)
    arguments = {"model": model, "column": column, "output": output, "embedder": made, "encode": encode}
    return _map(dataset, EmbedActor, arguments, num_gpus, num_cpus, concurrency, batch_size)


def generate_dataset(
    dataset: Any,
    column: str,
    model: str,
    *,
    output: str = "completion",
    num_gpus: float = 0,
    num_cpus: float = 1,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 256,
    llama: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Any:
    """A Ray data set with the continuations of a column of prompts; arguments as for `embed_dataset`.

    Args:
        llama: arguments of Llama; without them an actor computes with `num_cpus` threads.
        sampling: arguments of Llama.generate.
    """
    made = dict(llama or {})
    if not num_gpus:
        made.setdefault("n_threads", max(1, int(num_cpus)))
    arguments = {"model": model, "column": column, "output": output, "llama": made, "sampling": sampling}
    return _map(dataset, GenerateActor, arguments, num_gpus, num_cpus, concurrency, batch_size)


def _map(
    dataset: Any,
    actor: type,
    arguments: dict[str, Any],
    num_gpus: float,
    num_cpus: float,
    concurrency: int | tuple[int, int],
    batch_size: int,
) -> Any:
    from ray.data import ActorPoolStrategy

    resources: dict[str, Any] = {"num_gpus": num_gpus} if num_gpus else {"num_cpus": num_cpus}
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    # Ray restarts a lost actor, and what it was doing, as often as need be
    return dataset.map_batches(
        actor,
        fn_constructor_kwargs=arguments,
        batch_size=batch_size,
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        **resources,
    )
