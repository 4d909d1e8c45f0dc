"""What runs are derived into: tensors, strongest nodes, components, batches."""
