"""OpenAI's /v1/responses over the package's own chat layer."""
