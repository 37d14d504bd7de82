"""MaskCLIP+: fast networks of one's own, trained on the labels that CLIP gives for free."""
