"""The gate: compares a session with a trusted one before it scores: tolerances, references, and stored verdicts."""
