"""Answers sentences from a bundle with ONNX Runtime, tokenizers and NumPy; registered versions carry this code."""
