"""A web endpoint of one's own around one AsyncLlama (here Starlette; FastAPI is the same): streamed plain text.

uvicorn examples.web_app:app, then: curl 'http://127.0.0.1:8000/?q=Hello'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from llcuda_ffi import AsyncLlama


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One model for the life of the application."""
    async with AsyncLlama("smollm2-135m", n_ctx=1024, n_parallel=8) as llm:
        app.state.llm = llm
        yield


async def answer(request: Request) -> StreamingResponse:
    """Answer ?q= piece by piece; a client that leaves cancels its request."""
    messages = [{"role": "user", "content": request.query_params.get("q", "Hello")}]

    async def pieces() -> AsyncIterator[str]:
        async for chunk in request.app.state.llm.chat_stream(messages, max_tokens=40):
            yield chunk.content

    return StreamingResponse(pieces(), media_type="text/plain")


app = Starlette(routes=[Route("/", answer)], lifespan=lifespan)

if __name__ == "__main__":
    from starlette.testclient import TestClient

    with TestClient(app) as client:
        print(client.get("/", params={"q": "Say hello."}).text)
