"""Planning: compares the job with its model, the archive and the published rows."""
