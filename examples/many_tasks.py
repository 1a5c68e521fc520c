"""asyncio: tasks share one model; the event loop is never blocked."""

import asyncio

from llcuda_ffi import AsyncLlama


async def main() -> None:
    """Twenty requests at once, one of them cancelled."""
    async with AsyncLlama("smollm2-135m", n_ctx=256, n_parallel=8) as llm:
        tasks = [asyncio.create_task(llm.generate(f"{n} plus one is", max_tokens=4, temperature=0)) for n in range(20)]
        tasks[19].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            print(n, "cancelled" if isinstance(result, asyncio.CancelledError) else repr(result.text))


asyncio.run(main())
