"""Drafts a contract and a job for a model and an archive, and marks what is a guess."""
