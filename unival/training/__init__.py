"""What the loop of `unival.train` is made of: start, optimizer, processes, losses, checkpoints, checks."""
