"""The work of a worker process on a unit: load, cut into tiles, score, stage the part, report failures."""
