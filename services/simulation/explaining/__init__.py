"""Ways to propose explanations of a component from its record."""
