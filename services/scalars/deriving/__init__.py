"""Deriving scalars from raw activations: sources, derivers, stores, indices."""
