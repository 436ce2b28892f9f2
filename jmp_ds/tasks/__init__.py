"""What is to be learned: tasks as values, heads, losses, metrics, and the model that joins them."""
