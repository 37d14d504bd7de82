"""MaskCLIP+: fast networks of one's own, trained on the labels that CLIP gives for free.

decoders     DeepLabv2 and DeepLabv3+, up to the features that text rows classify
student      ResNet-v1c, a decoder, and text rows as the classifier
supervision  what a student learns from, step by step: labels and losses
released     the authors' checkpoints -> Student
"""
