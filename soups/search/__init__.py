"""Coefficients found rather than given: for a preference, greedily, by gradient descent."""
