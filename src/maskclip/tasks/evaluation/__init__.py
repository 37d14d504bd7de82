"""Evaluation: measure a predictor on a data set, by a protocol, also under corruption."""
