"""How `unival-tiny` is made: encoders from labels, aligned words, the model card."""
