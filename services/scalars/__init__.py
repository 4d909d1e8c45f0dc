"""Derived scalars: named quantities that a subject model's activations and gradients determine."""
