"""Step 4: label volumes against the reader's."""
