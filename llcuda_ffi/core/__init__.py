"""libllama's objects: model, vocabulary, context, batch, memory, samplers, adapters, state."""
