"""Review after a run: the report, its pictures, and the comparison of two runs or models."""
