"""Collation: record what makes components active, from a corpus and the scalars service."""
