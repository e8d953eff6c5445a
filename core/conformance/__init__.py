"""Golden vectors: small batches with what every method makes of them, and how another program is held against them."""
