"""What of the load tests a machine allows."""

from __future__ import annotations

from importlib.util import find_spec

# Locust is among the tools of developers, not among what the tests of a service need.
collect_ignore = [] if find_spec("locust") else ["test_records_load.py"]
