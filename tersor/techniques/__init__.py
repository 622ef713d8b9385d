"""One technique each; the file name is the name a user types."""
