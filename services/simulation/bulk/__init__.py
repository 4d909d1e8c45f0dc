"""Runs of many items that outlive crashes, under a budget."""
