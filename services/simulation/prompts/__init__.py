"""Prompts, in versioned files that stay as they are once released, and what renders them."""
