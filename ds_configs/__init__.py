"""DeepSpeed configurations that come with the package; README.md explains each."""
