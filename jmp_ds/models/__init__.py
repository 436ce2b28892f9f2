"""Edges to features: the GemNet-OC backbone in linear time (torch and numpy only)."""
