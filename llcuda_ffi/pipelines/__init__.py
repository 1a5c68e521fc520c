"""Many texts: files on one machine, data sets on a cluster."""
