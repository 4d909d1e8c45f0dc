"""Package neuropil.scalars."""
