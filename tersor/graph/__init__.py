"""Capture, operator rules, dependency analysis and surgery: the only room that knows ATen."""
