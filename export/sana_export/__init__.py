"""Model definitions written from the specification, checkpoint import, ONNX export and golden verification."""
