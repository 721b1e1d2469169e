"""What `docs/results.md` says, each figure by one command."""
