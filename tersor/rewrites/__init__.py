"""Model to model, same outputs."""
