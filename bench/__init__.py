"""Measurements beside other servers, and load tests. Nothing that ships imports it."""
