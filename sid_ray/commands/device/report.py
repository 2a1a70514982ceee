"""The report of a machine: report.json for programs, report.md for people, alike in content."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_ray.commands.device.apart import DeviceCheck
from sid_ray.commands.device.facts import facts_table
from sid_ray.commands.device.rows import FAILED, SKIPPED, VERDICTS, WARNING, DeviceRow
from sid_ray.storage.durable import replace_file

JSON_FILE, MARKDOWN_FILE, REPORT_FORMAT = "report.json", "report.md", 1


@dataclass
class CheckedDevice:
    """One check as it went; ``seconds`` it took of those it was given."""

    check: DeviceCheck
    given_s: float
    seconds: float = 0.0
    rows: list[DeviceRow] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(row.verdict for row in self.rows)

    @property
    def verdict(self) -> str:
        """The gravest of its rows'."""
        return max((row.verdict for row in self.rows), key=VERDICTS.index, default=SKIPPED)


@dataclass
class DeviceReport:
    """All that was found, written anew after every check."""

    folder: Path
    facts: Mapping[str, str]
    tables: Mapping[str, str]
    checks: list[CheckedDevice] = field(default_factory=list)
    complete: bool = False
    when: str = field(
        default_factory=lambda: f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    )

    @property
    def failed(self) -> int:
        return sum(each.counts[FAILED] for each in self.checks)

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.checks)

    def write(self) -> None:
        """Both files, each whole or not at all. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / JSON_FILE, json.dumps(self.to_values(), indent=1) + "\n")
        replace_file(self.folder / MARKDOWN_FILE, "\n".join(self.to_lines()) + "\n")

    def to_values(self) -> dict[str, Any]:
        return {
            "format": REPORT_FORMAT,
            "when": self.when,
            "complete": self.complete,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "machine": {**self.facts, **self.tables},
            "checks": [
                {
                    "name": each.check.name,
                    "looks_at": each.check.looks_at,
                    "verdict": each.verdict,
                    "seconds": round(each.seconds, 1),
                    "given_s": round(each.given_s, 1),
                    "rows": [row.to_values() for row in each.rows],
                }
                for each in self.checks
            ],
        }

    def to_lines(self) -> list[str]:
        """Markdown: the machine, a line a check, then every row."""
        lines = [
            "# sid-ray doctor --device",
            "",
            self.in_a_line(),
            "",
            *facts_table(self.facts),
            "",
        ]
        lines += ["| check | verdict | rows | seconds |", "|---|---|---|---:|"]
        for each in self.checks:
            words = [f"{each.counts[word]} {word}" for word in VERDICTS if each.counts[word]]
            cells = each.check.name, each.verdict, ", ".join(words), f"{each.seconds:.0f}"
            lines.append(table_line(cells))
        for each in self.checks:
            lines += ["", f"## {each.check.name}: {each.check.looks_at}", ""]
            lines += ["| what | measured | bound | verdict |", "|---|---|---|---|"]
            cells_of = ((row.name, row.measured, row.bound, row.verdict) for row in each.rows)
            lines += map(table_line, cells_of)
        for title, text in self.tables.items():
            lines += ["", f"## {title}", "", "```", text, "```"]
        return lines

    def in_a_line(self) -> str:
        words = Counter(row.verdict for each in self.checks for row in each.rows)
        found = f"{self.failed} found wrong" if self.failed else "nothing found wrong"
        more = ", ".join(f"{words[word]} {word}" for word in (WARNING, SKIPPED) if words[word])
        ended = "" if self.complete else "; not complete: it was stopped"
        return (
            f"{self.when}: {found} in {words.total()} rows{f' ({more})' if more else ''}, "
            f"{self.seconds:.0f} s{ended}."
        )


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"
