"""The HTTP/JSON gateway: parses a request, makes one call, answers."""
