"""Networks and their words as files that other runtimes open: ONNX, and `torch.export`."""
