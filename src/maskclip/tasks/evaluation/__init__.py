"""Measuring: a predictor on a data set, by a protocol."""
