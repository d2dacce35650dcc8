"""Publishing beside the driver."""
