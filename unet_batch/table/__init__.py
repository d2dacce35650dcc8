"""What is published: names, rows, parts, leases, and the one object per partition."""
