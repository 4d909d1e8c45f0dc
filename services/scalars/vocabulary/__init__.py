"""Entries of the vocabulary that nodes write and read."""
