"""What a dump says about the run it came from: numbers with intervals, faults that are named, a verdict."""
