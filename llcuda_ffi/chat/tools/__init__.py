"""Tools: their schemas, the choice among them, models that know none."""
