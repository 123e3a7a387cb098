"""Data: the embedded world (emoji, moving clips, sounds) and readers that turn records into tensors."""
