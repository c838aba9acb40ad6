"""What fasttransfer is measured with, and what it is held against; the import name is fasttransfer.bench."""
