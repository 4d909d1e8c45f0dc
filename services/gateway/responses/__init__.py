"""Answers as the OpenAPI document describes them, a module a family of routes.

Nothing makes objects of these classes: answers are built from arrays (`services.gateway.encoding`).
"""
