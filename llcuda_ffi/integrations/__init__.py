"""Adapters for packages that users already have; each needs the extra of its name."""
