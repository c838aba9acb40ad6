"""Training the networks of a study, on one machine or on many."""
