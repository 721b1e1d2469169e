"""From a trained network to a bundle that a worker takes."""
