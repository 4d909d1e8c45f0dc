"""Fitted calibrations, and the simulators that apply them."""
