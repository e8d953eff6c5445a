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


def shuffled(number: int, size: int, seed: int) -> int:
    """The row of the `number`-th draw from `size` rows in epochs: in order first, then in a new order each time.

    An epoch's order is a permutation that is computed row by row: a Feistel network on the bits of a row, walked until
    it comes back below `size`.

    Reference:
        Black and Rogaway (2002), Ciphers with arbitrary finite domains, sec. 4 (cycle walking).

    Example:
        >>> sorted(shuffled(number, 5, 0) for number in range(15, 20)), shuffled(3, 5, 0)
        ([0, 1, 2, 3, 4], 3)
    """
    epoch, row = divmod(number, size)
    if epoch == 0:
        return row
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = row >> half, row & ((1 << half) - 1)
        for turn in range(4):
            left, right = right, left ^ (key("epoch", seed, epoch, turn, right) & ((1 << half) - 1))
        row = left << half | right
        if row < size:
            return row
