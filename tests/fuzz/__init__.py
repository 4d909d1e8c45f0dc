"""Coverage-guided fuzzing of what reads files and requests: `make fuzz`."""
