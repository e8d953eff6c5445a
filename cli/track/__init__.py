"""Sinks of `firstorder train --track`: one module each, which imports its library when a run asks for it."""
