"""Scores of predictions against what was recorded, in arrays."""
