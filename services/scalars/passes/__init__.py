"""One run of the subject model: what it overwrites, what gradients start from, what it keeps."""
