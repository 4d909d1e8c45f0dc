"""Faults under load: parts fail while many clients read, and every answer is checked."""
