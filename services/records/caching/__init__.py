"""Serialized replies in memory, in front of a cache that replicas share."""
