from lmfolders import one_thread

__all__ = ["one_thread"]
