"""What pytest found, what it will run of that, and which files cannot run here: conftest.py has one listen."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["Collected", "is_whole"]


class Collected:
    """A plugin.  What is deselected is known, too."""

    NAME = "collected"

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []
        self.selected: set[pytest.Item] = set()
        self.skipped: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.items = list(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.selected = set(session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.skipped += [report.nodeid] if report.skipped else []

    def told(self, others: bool = False) -> dict[str, Any]:
        """`rows` of [file, function, whether it is run]; as the run of all `others` would say, if asked so."""
        rows = [
            [item.nodeid.partition("::")[0], getattr(item, "originalname", None), (item in self.selected) != others]
            for item in self.items
        ]
        return {"rows": rows, "skipped": self.skipped}


def is_whole(config: pytest.Config) -> bool:
    """Whether the run is `make test` or `make test-slow`, however many processes: nothing but a mark leaves any out."""
    less = ("keyword", "deselect", "ignore", "ignore_glob", "lf")
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    marks = config.option.markexpr in ("slow", "not slow")
    return everything and marks and not any(getattr(config.option, name, None) for name in less)
