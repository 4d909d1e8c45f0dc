"""The worker of a device: who waits, what runs together, what is kept for later."""
