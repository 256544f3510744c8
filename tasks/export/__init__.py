"""From a trained model to ONNX variants that answer alike, and the bundle that holds them."""
