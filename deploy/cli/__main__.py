"""`python -m deploy.cli`: the same as `aewatch`, wherever the script is installed."""

from deploy.cli import main

main()
