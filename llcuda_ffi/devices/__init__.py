"""Where a model goes: the devices of this machine, how much fits, what a load would take."""
