"""Anthropic's /v1/messages over the package's own chat layer."""
