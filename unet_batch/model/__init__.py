"""What is known of a model without running it: its graph, its contract, and whether they agree."""
