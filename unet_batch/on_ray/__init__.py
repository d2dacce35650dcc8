"""The executor on Ray, its actors, and runs as Ray jobs. The only folder that imports ray."""
