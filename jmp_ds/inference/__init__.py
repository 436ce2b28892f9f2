"""Using a trained model: predictions, files of them, and the import of published checkpoints."""
