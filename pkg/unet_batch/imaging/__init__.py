"""Pictures as arrays: fitting, normalising, cutting, stitching, reducing. NumPy only: no Ray, no ONNX, no files."""
