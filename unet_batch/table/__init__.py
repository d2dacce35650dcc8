"""The output table: names, rows, parts, leases, and the published object of each partition."""
