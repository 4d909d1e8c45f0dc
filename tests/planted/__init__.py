"""A transformer whose neurons' meaning is known exactly, and what follows from it."""
