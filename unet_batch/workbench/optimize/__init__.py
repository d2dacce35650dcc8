"""Finds the fastest way to run a model on this machine, proves it, and writes it into one file."""
