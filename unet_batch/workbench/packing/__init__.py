"""Pre- and postprocessing written into a graph, and the proof that nothing changed."""
