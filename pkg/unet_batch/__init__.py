"""Scores archives of images with U-Nets in ONNX and proves that every image has exactly one row.

Importing this package is cheap: neither Ray nor ONNX Runtime is loaded until a job needs it.
"""

__version__ = "0.1.0"
