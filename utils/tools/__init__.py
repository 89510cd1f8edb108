"""Further commands, each run as ``python -m utils.tools.NAME``."""
