"""What a single weight is worth, one criterion each."""
