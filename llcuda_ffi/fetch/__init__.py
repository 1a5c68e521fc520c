"""Getting files from elsewhere, verified: HTTP with resume, the npm registry, wheels by pip, the hub.

Whatever arrives has its size and hash checked before it is given a name that others look for.
"""
