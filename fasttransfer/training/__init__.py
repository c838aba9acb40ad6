"""How the networks of a study are trained, on one machine or on many."""
