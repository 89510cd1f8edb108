"""Networks, trained and exported ones."""
