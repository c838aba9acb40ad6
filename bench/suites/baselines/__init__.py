"""The same work as anybody would write it in PyTorch."""
