"""Metrics as pure functions: strings or arrays in, per-sample float64 scores and one corpus value out."""
