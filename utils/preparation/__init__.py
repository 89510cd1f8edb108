"""Step 1: cases checked, preprocessed and split."""
