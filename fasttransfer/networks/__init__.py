"""Networks: stages and sizes, the form of their input, and the cuts of a frozen prefix."""
