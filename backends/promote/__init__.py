"""A recipe made ready for a cluster: settings, launchers, memory and time, checked on a machine without a GPU."""
