"""Servers and channels: one place builds each."""
