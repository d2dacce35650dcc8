"""Which images an archive holds: discovery, inventory, containers, and what was passed over."""
