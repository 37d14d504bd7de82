"""Better words and thresholds for a labelling, from the photos of it that people corrected."""
