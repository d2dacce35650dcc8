"""A model without running it: its graph, its contract, and whether they agree."""
