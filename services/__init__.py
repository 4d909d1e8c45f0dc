"""The services, one folder each."""

from __future__ import annotations

import os

# gRPC reads this when it is imported, so it is set before any service imports it. Its handlers of
# forks are for processes that go on to use gRPC after a fork. Ours only start other programs, where
# the handlers do nothing but write a line to standard error that is no JSON.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
