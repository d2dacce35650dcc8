"""Pre- and postprocessing in the graph, and the proof that results do not change."""
