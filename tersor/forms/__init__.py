"""One kind of weight each."""
