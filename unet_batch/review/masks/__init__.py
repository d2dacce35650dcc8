"""Masks of published rows as files that other tools open."""
