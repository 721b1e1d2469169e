"""The pipeline's own code on a fake clock, a fake Kafka and a model of Redis: random schedules, all repeatable.

Real: frames and windows on the wire, `FramePartition`, `OrderedAcks`, `WindowAgent`, `WindowOutput`, `Worker`, alarm
rules and state, `AlertStore`. Fake: the event loop and its clock, Kafka (logs, groups with generations, producers,
consumers), the server behind `AlertStore` (held against the real one in `tests/integration/test_store_model.py`), the
network. `python -m tests.simulation --help` runs as many schedules as you like.
"""
