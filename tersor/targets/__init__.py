"""One target each; the file name is the name a user types."""
