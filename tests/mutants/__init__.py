"""One mistake at a time: `run.py` makes those of `table.py`, and a test must see each."""
