"""The use cases, without a command line."""
