"""Simulators: what predicts a component's activations from an explanation."""
