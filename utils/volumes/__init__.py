"""Scans in and out of files: formats, vendors, spacing, geometry."""
