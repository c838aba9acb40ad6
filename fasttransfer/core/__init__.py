"""What every other room stands on: errors, files, progress, randomness, intervals, the machine."""
