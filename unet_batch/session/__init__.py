"""What runs a model: the table of engines, their sessions, ensembles, and batches of a size that pays and fits."""
