"""Everything about ONNX models: contracts held against files, sessions, and batches of a size that pays."""
