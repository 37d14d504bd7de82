"""Values and pure functions on arrays and tensors; no networks, no printing."""
