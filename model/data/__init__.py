"""Data sets: what is in them, as arrays, and how they are parted."""
