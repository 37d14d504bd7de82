"""MaskCLIP+: fast networks of one's own, trained on the labels that CLIP gives for free.

config       which student, by name
decoders     DeepLabv2 and DeepLabv3+, up to the features that text rows classify
modern       any decoder of segmentation-models-pytorch over any backbone of timm
student      a backbone, a decoder, and text rows as the classifier
settings     how a student is taught, in values
stream       what a training sees, position by position
supervision  what a student learns from, step by step: labels and losses
training     one step, its optimiser, its validation, for Lightning
released     the authors' checkpoints -> Student
files        students with their classes <-> files
recognise    whether a file is a student's, cheaply
"""
