"""What people do to a model file: export, inspect, pack, quantize, tune. No worker imports it."""
