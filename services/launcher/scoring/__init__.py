"""The command `neuropil score`: many explanations scored in one run that can be gone on with."""
