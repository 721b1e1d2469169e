"""Sources that go on: what a plant's acquisition gives while it gives it. One kind a file."""
