"""Models, data and metrics as users bring them."""
