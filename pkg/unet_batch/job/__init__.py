"""A job from its file to its published partitions: plan, stages, executors, run, status and verify."""
