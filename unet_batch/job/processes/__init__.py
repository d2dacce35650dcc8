"""Processes of this package that a driver starts, each behind its pipe."""
