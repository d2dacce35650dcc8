"""The demo: a model and an archive to try everything with."""
