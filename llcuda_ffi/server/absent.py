"""Paths of other servers that this one does not have, and why."""

from __future__ import annotations

# the beginning of a path, without /v1 → what is said; the first that fits
_ABSENT = {
    "/files": "no files are kept: llcuda-ffi generate --file answers a whole file",
    "/uploads": "no files are kept: llcuda-ffi generate --file answers a whole file",
    "/batches": "no batches are kept: llcuda-ffi generate --file answers a whole file",
    "/messages/batches": "no batches are kept: llcuda-ffi generate --file answers a whole file",
    "/chat/completions": "chats are not stored: POST one, or use /v1/responses, which are",
    "/responses/compact": "conversations are not compacted: send fewer items",
    "/responses/": "a response runs while its request does: there is no background to cancel it in",
    "/conversations": "conversations are not stored: send previous_response_id to /v1/responses",
    "/assistants": "assistants are not stored: /v1/responses has instructions and previous_response_id",
    "/threads": "threads are not stored: /v1/responses has previous_response_id",
    "/vector_stores": "no documents are stored: /v1/embeddings and /v1/rerank are there",
    "/images": "no images are made here",
    "/videos": "no videos are made here",
    "/audio": "no speech is made or read here; a chat may have sounds where the model hears",
    "/realtime": "there are no calls: stream a chat",
    "/moderations": "this server moderates nothing: ask a model of your choice",
    "/fine_tuning": "nothing is trained here: serve --lora NAME=FILE takes adapters",
    "/load_lora_adapter": "adapters are named at the start: serve --lora NAME=FILE",
    "/unload_lora_adapter": "adapters are named at the start: serve --lora NAME=FILE",
    "/classify": "a reranker's scores are at /v1/rerank and /v1/score",
    "/pooling": "vectors are at /v1/embeddings",
    "/embed": "vectors are at /v1/embeddings",
    "/generate": "text is generated at /v1/completions, or llama.cpp's /completion",
    "/slots/": "the scheduler fills the slots; serve --disk-cache keeps prefixes",
    "/engines": "the model is named in the body: /v1/completions",
    "/openai/deployments": "this is OpenAI's own form, not Azure's: base_url is http://HOST:PORT/v1",
    "/api/": "this is OpenAI's API, not Ollama's: base_url is http://HOST:PORT/v1",
}


def why_absent(path: str, allowed: str | None) -> str:
    """What to say of a path that is not here, or that takes only the methods `allowed`."""
    if "//" in path:
        return f"{path:.100} has // in it: give the client a base_url that ends without /"
    if path.startswith("/v1/v1/"):
        return f"{path:.100} has /v1 twice: this client adds it, so leave it out of its base_url"
    short = path.removeprefix("/v1").removeprefix("/v2")
    for start, why in _ABSENT.items():
        if short.startswith(start):
            return f"{path:.100} is not here: {why}"
    if allowed is not None:
        return f"{path:.100} takes {allowed}"
    return f"{path:.100} is not here: docs/server.md lists the paths"
