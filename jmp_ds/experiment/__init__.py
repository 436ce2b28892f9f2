"""What the two trainers share: from a checked configuration to structures, normalised tasks, evaluation and a report."""
