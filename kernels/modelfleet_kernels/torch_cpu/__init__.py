"""Torch on CPU, shaped for few and large calls: packed weights, one gather and one attention call per group of rows."""
