"""What config.py may hold."""
