"""What a bundle is worth on windows it was not trained on, and how that is told."""
