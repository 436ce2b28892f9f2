"""What a training step costs: named batches, the floor of dense products, and the measurement of steps against it.

Imports with torch and numpy alone, so that it runs on machines where nothing else is installed.
"""
