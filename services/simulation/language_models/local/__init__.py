"""Language models of a local folder: exact logits, with what prompts share computed once."""
