"""Ways to score an explanation of a component."""
