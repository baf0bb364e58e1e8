"""A file of results, a line each, so that a benchmark can be stopped and resumed."""

import json
from pathlib import Path


class Records:
    """Lines of `results.jsonl` in a folder.

    Args:
        folder: where the file is, or will be.
    """

    def __init__(self, folder: Path):
        self.results = folder / "results.jsonl"

    def done(self):
        """Return the results so far by name."""
        if not self.results.exists():
            return {}
        return {line["name"]: line for line in map(json.loads, self.results.read_text().splitlines())}

    def add(self, name, **values):
        """Write a line."""
        with self.results.open("a") as file:
            file.write(json.dumps({"name": name, **values}) + "\n")
        print(name, values, flush=True)
