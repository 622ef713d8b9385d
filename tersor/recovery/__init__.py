"""Training that gives back what compression lost: one loop, whatever was decided stays decided."""
