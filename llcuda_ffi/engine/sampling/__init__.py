"""Everything that chooses a token: select.py is the entry."""
