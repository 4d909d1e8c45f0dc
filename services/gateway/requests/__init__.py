"""Bodies that clients send, a module a family of routes."""
