"""The parts of a labelling; `tasks.label` puts them together."""
