"""Clock, accuracy, regression: what is claimed."""
