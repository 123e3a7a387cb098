"""What training minimises: (model, batch) -> loss and numbers to log; the file name is the registry."""
