"""A session held against a trusted one before it scores: tolerances, references, and verdicts that are kept."""
