"""What callers ask for, checked against the model, the catalogue and their inference."""
