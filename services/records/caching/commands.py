"""The commands of the shared cache, in the form of the wire.

A lease is the mark that its owner stores under the key of the reply itself, so that one command
asks for a reply and, where there is none, for the right to load it. What its owner writes
afterwards is written only while the mark is still there: a reply loaded before the key was dropped
never comes back. Replies that change are therefore stored with a lease only.
"""

from __future__ import annotations

import hiredis

from services.records.caching.lifetimes import scattered
from services.records.caching.values import MISSING_VALUE, NOT_SHARED_VALUE, Lease, header_of

LEASE_SECONDS = 1.0
"""How long a lease lives that nobody renews: so long others wait for a replica that died."""

NOT_SHARED_SECONDS = 0.5
"""How long those who waited are told to load for themselves."""

_WRITE = (
    b"if redis.call('get',KEYS[1])~=ARGV[1] then return 0 end "
    b"redis.call('set',KEYS[1],ARGV[2],'px',ARGV[3]) return 1"
)
_RENEW = (
    b"if redis.call('get',KEYS[1])~=ARGV[1] then return 0 end "
    b"return redis.call('pexpire',KEYS[1],ARGV[2])"
)


def claim(lease: Lease) -> bytes:
    """Ask for a reply; where there is none, take the lease."""
    return packed(
        b"SET", _name(lease.key), lease.mark, b"NX", b"GET", b"PX", _milliseconds(LEASE_SECONDS)
    )


def get(key: str) -> bytes:
    """Ask for a reply."""
    return packed(b"GET", _name(key))


def get_many(keys: list[str]) -> bytes:
    """Ask for several replies."""
    return packed(b"MGET", *map(_name, keys))


def delete(key: str) -> bytes:
    """Drop a reply, and the lease on it."""
    return packed(b"DEL", _name(key))


def store(key: str, reply: bytes | None, ttl_seconds: float, lease: Lease | None) -> list[bytes]:
    """Store a reply, or that there is none; the parts of the command, the reply not copied."""
    value = [MISSING_VALUE] if reply is None else [header_of(reply), reply]
    ends = _milliseconds(scattered(ttl_seconds))
    if lease is None:
        return _encoded([b"SET"], [_name(key)], value, [b"PX"], [ends])
    return _encoded([b"EVAL"], [_WRITE], [b"1"], [_name(key)], [lease.mark], value, [ends])


def give_up(lease: Lease) -> bytes:
    """Tell those who wait that they have to load for themselves."""
    ends = _milliseconds(NOT_SHARED_SECONDS)
    return packed(b"EVAL", _WRITE, b"1", _name(lease.key), lease.mark, NOT_SHARED_VALUE, ends)


def renew(lease: Lease) -> bytes:
    """Keep a lease for a load that takes long."""
    ends = _milliseconds(LEASE_SECONDS)
    return packed(b"EVAL", _RENEW, b"1", _name(lease.key), lease.mark, ends)


def _milliseconds(seconds: float) -> bytes:
    return str(max(1, int(seconds * 1000))).encode()


def packed(*parts: bytes) -> bytes:
    # Its annotation means a tuple of one part.
    return hiredis.pack_command(parts)  # type: ignore[arg-type, no-any-return]


def _name(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _encoded(*arguments: list[bytes]) -> list[bytes]:
    encoded, text = [], b"*%d\r\n" % len(arguments)
    for pieces in arguments:
        encoded += [text + b"$%d\r\n" % sum(map(len, pieces)), *pieces]
        text = b"\r\n"
    return [*encoded, text]
