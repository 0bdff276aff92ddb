"""MkDocs hooks of `make docs`: pages from elsewhere in the repository, and tables.

Pages and sections that GitHub shows have a single source, which the site reads in place. Links in
them are relative to that place. They are rewritten to pages of the site, or to plain text if the
target is not a page. A link to a missing file fails the build.

A page includes the text under a heading of another file with

    <!-- include: README.md "Results" -->

and a table of committed measurements with <!-- table: NAME -->, where NAME is a key of TABLES. This
module also converts docstrings to Markdown, for site_docstrings.py.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"
# Maps a path in the repository to the page's address on the site.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "clasp_kernels/assets/tiny_vlm/README.md": "tiny-vlm.md",
    "benchmarks/results/h200/README.md": "gpu-runs.md",
}
# Folders of the pictures on those pages.
PICTURES = {"benchmarks/results/cpu": "pictures"}

_INCLUDE = re.compile(r'^<!-- include: (\S+) "(.+)" -->$', re.MULTILINE)
_TABLE = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
# Patterns in docstrings: a doctest with its output, up to a blank line; a role; a term with its
# definition.
_DOCTEST = re.compile(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]+)`")
_TERM = re.compile(r"^(``[^\n]+``)\n    (?=\S)", re.MULTILINE)


class SiteError(Exception):
    """A problem with a page, in one sentence."""


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for source, address in PAGES.items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / source)))
    for folder, address in PICTURES.items():
        for picture in sorted((ROOT / folder).glob("*.png")):
            there = f"{address}/{picture.name}"
            files.append(File.generated(config, there, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    from mkdocs.exceptions import PluginError

    address = page.file.src_uri
    source = {there: here for here, there in PAGES.items()}.get(address, f"docs/{address}")
    try:
        return page_text(markdown, source, address)
    except SiteError as error:
        raise PluginError(f"{source}: {error}") from None


def page_text(markdown: str, source: str, address: str) -> str:
    """Returns a page's text with all includes, and with links relative to ``address``."""
    parts = _INCLUDE.split(markdown)
    text = rewritten_links(parts[0], source, address)
    for file, heading, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += rewritten_links(section(file, heading), file, address)
        text += rewritten_links(after, source, address)
    return _TABLE.sub(lambda found: table(found[1]), text)


def section(file: str, heading: str) -> str:
    """Returns the text under a second-level heading, up to the next one."""
    _, found, rest = (ROOT / file).read_text().partition(f"\n## {heading}\n")
    if not found:
        raise SiteError(f'{file} has no heading "{heading}" to include')
    return rest.partition("\n## ")[0].strip() + "\n"


def rewritten_links(markdown: str, source: str, address: str) -> str:
    """Rewrites the links in the ``markdown`` of file ``source`` for the page ``address``."""

    def outside_code(text: str) -> str:
        return _LINK.sub(lambda link: _rewritten(link, source, address), text)

    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [outside_code(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, outside_code(markdown[end:])])


def _rewritten(link: re.Match[str], source: str, address: str) -> str:
    picture, text, target = link.groups()
    path, hash_sign, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path:
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / file).exists():
        raise SiteError(f"the link to {target} leads to {file}, which does not exist")
    there = _address(file)
    if there is None:
        return str(rewritten_links(text, source, address))
    relative = posixpath.relpath(there, posixpath.dirname(address) or ".")
    return f"{picture}[{text}]({relative}{hash_sign}{anchor})"


def _address(file: str) -> str | None:
    """Returns the site address of a file of the repository, or None if it has none."""
    if file in PAGES:
        return PAGES[file]
    if file == "README.md":
        return "index.md"
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    folder, name = os.path.split(file)
    return f"{PICTURES[folder]}/{name}" if folder in PICTURES and name.endswith(".png") else None


def docstring_as_markdown(docstring: str) -> str:
    """Converts a docstring written for the source and help() to the site's Markdown.

    Markdown would render a doctest as nested block quotes.
    """
    text = _DOCTEST.sub(r"```pycon\n\1\n```", docstring)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = _TERM.sub(r"\n\1\n:   ", text)
    return _ROLE.sub(r"`\1`", text)


def table(name: str) -> str:
    if name not in TABLES:
        raise SiteError(f"there is no table {name}; there are: {', '.join(TABLES)}")
    return TABLES[name]()


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def accuracy_by_budget() -> str:
    """Accuracy of the bundled model per category, by tokens kept before the LLM."""
    rows = [
        row
        for row in _read("quality/rows.json")["mean"]["rows"]
        if row["row"] in ("all tokens", "full")
    ]
    rows.sort(key=lambda row: -row["tokens"])
    categories = list(rows[0]["accuracy_by_category"])
    return _markdown_table(
        ["tokens kept", "share", "overall", *categories],
        [
            [
                str(row["tokens"]),
                f"{row['tokens'] / rows[0]['tokens']:.0%}",
                f"{row['accuracy'][0]:.3f}",
                *(f"{row['accuracy_by_category'][category][0]:.3f}" for category in categories),
            ]
            for row in rows
        ],
    )


def accuracy_by_schedule() -> str:
    """Accuracy of the bundled model per schedule, next to keeping as many tokens before the LLM."""
    rows = _read("tiny_vlm_stages.json")["rows"]
    before = {round(row["mean_tokens"]): row for row in rows if "salience_rows" not in row}
    inside = [
        row
        for row in rows
        if (row.get("salience_rows"), row.get("completion_on")) == ("last", "hidden")
    ]
    return _markdown_table(
        ["schedule", "mean kept", "inside the decoder", "before the LLM"],
        [
            [
                f"`{row['schedule']}`",
                f"{row['mean_tokens']:.1f}",
                f"{row['overall']:.3f}",
                f"{before[round(row['mean_tokens'])]['overall']:.3f}",
            ]
            for row in inside
        ],
    )


def cost_by_budget() -> str:
    """Cost of one prompt to a whole model: time to the first token, and the KV cache."""
    rows = [row for row in _read("prefill.json")["rows"] if row["batch"] == 1 and not row["ideal"]]
    every = next(row for row in rows if row["method"] == "unpruned")
    methods = {"unpruned": "nothing", "input": "before the LLM", "progressive": "inside it"}
    return _markdown_table(
        ["tokens kept", "dropped", "first token", "of the unpruned", "KV cache", "of the unpruned"],
        [
            [
                str(row["budget"]),
                methods[row["method"]],
                f"{row['first_token']:.2f} s",
                f"{row['first_token'] / every['first_token']:.0%}",
                f"{row['kv_bytes'] / 2**20:.0f} MiB",
                f"{row['kv_bytes'] / every['kv_bytes']:.0%}",
            ]
            for row in rows
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    "accuracy-by-budget": accuracy_by_budget,
    "accuracy-by-schedule": accuracy_by_schedule,
    "cost-by-budget": cost_by_budget,
}
