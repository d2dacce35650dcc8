"""Runs: from the plan to published partitions, and their verification."""
