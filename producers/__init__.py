"""Everything that senses: sources that yield frames, and the publisher that answers for each of them."""
