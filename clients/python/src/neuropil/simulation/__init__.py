"""Package neuropil.simulation."""
