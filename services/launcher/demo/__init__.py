"""The main job end to end, through the public API, on the demo deployment."""
