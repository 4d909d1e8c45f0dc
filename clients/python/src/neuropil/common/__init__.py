"""Package neuropil.common."""
