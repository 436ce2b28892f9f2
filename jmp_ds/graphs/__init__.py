"""Positions to edges: settings, neighbour search, the graphs of a batch."""
