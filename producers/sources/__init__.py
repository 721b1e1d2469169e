"""Sources of frames, one kind a file."""
