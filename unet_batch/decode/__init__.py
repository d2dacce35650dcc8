"""Bytes become pages: one module per family of formats, and isolation for files that may crash their decoder."""
