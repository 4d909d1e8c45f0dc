"""Search over the explanations of all datasets, by words and by meaning."""
