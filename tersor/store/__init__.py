"""Manifest, checksums, atomic files."""
