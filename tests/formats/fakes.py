"""Classes under the names of frameworks that are not installed, for as long as a pickle of them is written."""

import contextlib
import sys
import types


@contextlib.contextmanager
def named(**modules):
    """Classes and functions, by module with `__` for the dot, as if they were defined there."""
    added = []
    try:
        for module, members in modules.items():
            parts = module.split("__")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if name not in sys.modules:
                    sys.modules[name] = types.ModuleType(name)
                    added.append(name)
            for member in members:
                member.__module__, member.__qualname__ = ".".join(parts), member.__name__
                setattr(sys.modules[".".join(parts)], member.__name__, member)
        yield
    finally:
        for name in added:
            del sys.modules[name]
