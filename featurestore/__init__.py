"""The feature store: what was computed, from what, and whether it can be trusted."""
