"""Package neuropil.records."""
