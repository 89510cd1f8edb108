"""Further commands: python -m utils.tools.NAME."""
