"""Pickled checkpoints, read as plain data: the only place where this package touches pickles."""
