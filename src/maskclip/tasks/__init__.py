"""Whole jobs, callable from Python: no command line, no printing."""
