"""What a worker process does with a unit: load, cut, score, stage its part, and say what went wrong."""
