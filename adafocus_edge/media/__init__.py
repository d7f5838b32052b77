"""From files, folders and addresses to the model's pixels."""
