"""Settings: TOML, overrides, grids, and what a number may be."""
