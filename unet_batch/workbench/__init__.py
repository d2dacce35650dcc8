"""Tools for model files: export, inspect, pack, quantize, tune. No worker imports this package."""
