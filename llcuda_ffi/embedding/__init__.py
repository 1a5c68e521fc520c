"""How texts become vectors: the queue that packs them, the contexts that compute them."""
