"""Compiled loops for what stock kernels are slow at: decoding steps of a few rows."""
