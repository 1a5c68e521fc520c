"""The C library: declarations, loading, the guard, handles, the log."""
