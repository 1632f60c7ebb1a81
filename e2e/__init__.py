"""End-to-end tests and the clusters they run on."""
