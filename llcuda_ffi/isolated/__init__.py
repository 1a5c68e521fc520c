"""The engine in a process of its own: what ends it ends neither this process nor what others asked of it."""
