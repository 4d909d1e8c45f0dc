"""Readers of what language models answer: log probabilities, echoed prompts, structured answers."""
