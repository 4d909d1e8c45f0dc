"""The subject model: weights, tokenizer, and a forward pass whose tensors can be tapped."""
