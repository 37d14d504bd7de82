"""The page and the service: HTTP outside, one thread with the models inside."""
