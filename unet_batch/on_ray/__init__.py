"""The executor on Ray, its actors, and runs as Ray jobs. Only this package imports ray."""
