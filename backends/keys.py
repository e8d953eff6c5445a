"""Seeds as hashes of what they are for, so that a resumed run needs no generator state."""

from __future__ import annotations

from hashlib import blake2b


def key(*parts: int | str) -> int:
    """A 31-bit number that depends on every part and on their order.

    Example:
        >>> key("rollout", 0, 3) == key("rollout", 0, 3), key("rollout", 0, 3) == key("rollout", 3, 0)
        (True, False)
    """
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31
