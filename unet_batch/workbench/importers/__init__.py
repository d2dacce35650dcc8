"""Readers of models in the form that other frameworks save them."""
