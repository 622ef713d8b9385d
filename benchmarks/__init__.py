"""Measurements beside the peers: never run by the tests, and the only place where peers are imported."""
