"""What a network is: its stages and sizes, what it reads, and what is kept of its frozen prefix."""
