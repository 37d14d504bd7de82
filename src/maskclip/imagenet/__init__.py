"""A preview that needs no CLIP: an image classifier of ImageNet, read densely."""
