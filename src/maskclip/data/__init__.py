"""What is read from disk."""
