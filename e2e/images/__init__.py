"""The project's container images, built without a container engine's daemon: `python -m e2e.images --help`."""
