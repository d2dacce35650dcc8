"""A run from its plan to its published partitions, and the proof."""
