"""Step 5, and step 4's predictions: a scan segmented, measured and shown."""
