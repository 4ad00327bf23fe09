"""A script a claim. `make bench` runs them all; each prints its table with the command and the machine."""
