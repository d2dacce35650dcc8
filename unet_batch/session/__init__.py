"""Running a model: the table of engines, their sessions, ensembles, and batches of an efficient size that fits."""
