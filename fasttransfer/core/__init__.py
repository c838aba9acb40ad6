"""Modules that every other package uses: errors, files, progress, randomness, intervals, the machine."""
