"""The HTTP routes, a module a tag of the OpenAPI document."""
