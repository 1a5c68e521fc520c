"""The scheduler and what it needs: requests, slots, sampling, prefixes, text."""
