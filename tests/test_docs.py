"""The documentation is correct: its code runs, and it has every public name, option, variable."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import site_hooks

import clasp_kernels
from clasp_kernels import models, ops, policy, rules, visualize

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ENVIRONMENT = (DOCS / "environment.md").read_text()
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=str)
def test_the_code_of_a_page_runs_and_gives_what_it_says(page: Path) -> None:
    names: dict[str, object] = {}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for language, code in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
            continue
        example = doctest.DocTestParser().get_doctest(code, names, str(page), str(page), 0)
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=flags)
        runner.run(example, out=said.append, clear_globs=False)
        assert not said, "".join(said)
        names |= example.globs


def documented() -> set[str]:
    """Return the dotted names on the pages of the reference."""
    pages = (DOCS / "reference").glob("*.md")
    return {name for p in pages for name in re.findall(r"^::: (\S+)$", p.read_text(), re.M)}


def test_the_reference_has_every_public_name() -> None:
    # These are documented under the name that the package exports.
    same = {f"clasp_kernels.ops.{name}" for name in ops.__all__} | {
        "clasp_kernels.models.apply_clasp"
    }
    public = {
        f"{module.__name__}.{name}"
        for module in (clasp_kernels, models, ops, policy, rules)
        for name in module.__all__
    }
    drawn = {
        f"clasp_kernels.visualize.{name}"
        for name, value in vars(visualize).items()
        if not name.startswith("_")
        and (name.isupper() or getattr(value, "__module__", None) == visualize.__name__)
    }
    assert len(drawn) >= 9
    assert not ((public - same) | drawn) - documented()


def test_the_reference_has_no_name_that_is_gone() -> None:
    for name in documented():
        parts = name.split(".")
        value: object = clasp_kernels
        for index, part in enumerate(parts[1:], 2):
            if inspect.ismodule(value) and not hasattr(value, part):
                __import__(".".join(parts[:index]))
            value = getattr(value, part)


def test_the_command_line_has_no_other_options_than_its_page() -> None:
    import typer.main

    from clasp_kernels.cli.app import app

    page = (DOCS / "command-line.md").read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = dict(re.findall(r"^## clasp (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert parts.keys() == commands.keys()
    for name, command in commands.items():
        real = {option for each in command.params for option in each.opts if option[:2] == "--"}
        told = set(re.findall(r"^\| `(--[\w-]+)", parts[name], re.M))
        assert told == real - {"--help"}, name


# --- environment variables ---

NAME = re.compile(r"[A-Z][A-Z0-9_]+")
MAPPINGS = {"environ", "environment"}


def constants(tree: ast.AST) -> dict[str, set[str]]:
    """Return the upper-case strings in the value assigned to each name."""
    return {
        node.targets[0].id: strings(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def strings(node: ast.AST) -> set[str]:
    values = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
    return {value for value in values if isinstance(value, str) and NAME.fullmatch(value)}


def key_of_a_read(node: ast.AST) -> ast.expr | None:
    """Return the key if a node reads an environment variable, else None."""
    match node:
        case ast.Call(func=ast.Attribute(value=of, attr="get" | "setdefault"), args=[key, *_]):
            pass
        case ast.Subscript(value=of, slice=key, ctx=ast.Load()):
            pass
        case ast.Compare(left=key, ops=[ast.In()], comparators=[of]):
            pass
        case ast.Call(func=ast.Attribute(attr="getenv"), args=[key, *_]):
            return key
        case _:
            return None
    return key if getattr(of, "attr", getattr(of, "id", None)) in MAPPINGS else None


def read_by_python(source: str) -> set[str]:
    """Return the variables that a file reads.

    If the key of a read is not a constant, all upper-case strings of its function count.
    """
    tree = ast.parse(source)
    known = constants(tree)
    found: set[str] = set()
    for function in ast.walk(tree):
        if not isinstance(function, (ast.Module, ast.FunctionDef)):
            continue
        for node in ast.walk(function):
            key = key_of_a_read(node)
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                found |= {key.value} if NAME.fullmatch(key.value) else set()
            elif isinstance(key, ast.Name) and key.id in known:
                found |= known[key.id]
            elif key is not None and isinstance(function, ast.FunctionDef):
                found |= strings(function)
                used = {each.id for each in ast.walk(function) if isinstance(each, ast.Name)}
                found |= {value for name in used for value in known.get(name, set())}
    return found


def read_by_cpp(source: str) -> set[str]:
    keys = re.findall(r"getenv\(([^)]+)\)", source)
    named = {key.strip('"') for key in keys if key.startswith('"')}
    # If a name is passed as a parameter or constant, all strings that look like variables count.
    return (
        named if len(named) == len(keys) else named | set(re.findall(r'"([A-Z]+_[A-Z_]+)"', source))
    )


def read_by_shell(source: str) -> set[str]:
    return set(re.findall(r"\$\{([A-Z][A-Z0-9_]*):[-+?]", source))


def read_by_make(source: str) -> set[str]:
    used = set(re.findall(r"\$\((?:or \$\()?([A-Z]+)\b", source))
    own = set(re.findall(r"^([A-Z_]+) :?= ", source, re.M))
    return used - own - {"CURDIR", "MAKEFILE_LIST"}


def read_variables() -> Iterator[tuple[str, str]]:
    """Yield (file, variable) for every variable that a file reads."""
    by_suffix = {
        ".py": read_by_python,
        **dict.fromkeys((".h", ".cpp", ".cu", ".cuh", ".inc"), read_by_cpp),
        ".sh": read_by_shell,
    }
    for folder in ("clasp_kernels", "csrc", "tools", "benchmarks", "tests", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            # Variables that tests set for their own processes are not documented.
            if path.suffix in by_suffix and not path.name.startswith("test_"):
                for name in by_suffix[path.suffix](path.read_text()):
                    yield path.relative_to(ROOT).as_posix(), name
    for file, read in (("setup.py", read_by_python), ("Makefile", read_by_make)):
        for name in read((ROOT / file).read_text()):
            yield file, name


def test_every_variable_that_is_read_is_on_the_page() -> None:
    read = set(read_variables())
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", ENVIRONMENT))
    assert {name for _, name in read} >= {
        *("CLASP_KERNELS_BACKEND", "CLASP_KERNELS_BUILD_CUDA", "CLASP_KERNELS_STRICT"),
        *("CLASP_KERNELS_CUDA_DESIGN", "COLUMNS", "NVCC_CCBIN", "SIMT_ORDER", "LIMIT", "TORCH"),
    }
    assert not {(file, name) for file, name in read if name not in listed}


def test_no_variable_of_ours_is_on_the_page_that_nobody_reads() -> None:
    sources = "".join(
        path.read_text()
        for folder in ("clasp_kernels", "csrc", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".cu", ".h")
    )
    ours = set(re.findall(r"`(CLASP_KERNELS_[A-Z_]*[A-Z])`", ENVIRONMENT))
    assert len(ours) >= 5
    assert not {name for name in ours if f'"{name}"' not in sources}


# --- the pages of the site ---


@pytest.mark.parametrize("page", [*PAGES, *map(ROOT.joinpath, site_hooks.PAGES)], ids=str)
def test_every_page_comes_together(page: Path) -> None:
    source = page.relative_to(ROOT).as_posix()
    address = site_hooks.PAGES.get(source, source.removeprefix("docs/"))
    text = site_hooks.page_text(page.read_text(), source, address)
    assert "<!-- include" not in text and "<!-- table" not in text


def test_links_lead_to_pages_of_the_site_and_files_that_are_none_become_text() -> None:
    def rewritten(text: str) -> str:
        return site_hooks.rewritten_links(text, "docs/reference/ops.md", "reference/ops.md")

    assert rewritten("[a](../../CONTRIBUTING.md#style)") == "[a](../contributing.md#style)"
    assert rewritten("[`b`](../../setup.py)") == "`b`"
    assert rewritten("[c](https://x.org) [d](#e)") == "[c](https://x.org) [d](#e)"
    assert rewritten("```\n[f](nowhere.md)\n```") == "```\n[f](nowhere.md)\n```"
    with pytest.raises(site_hooks.SiteError, match=r"nowhere\.md, which does not exist"):
        rewritten("[g](nowhere.md)")


def test_a_section_or_table_that_is_gone_is_named() -> None:
    with pytest.raises(site_hooks.SiteError, match=r'README\.md has no heading "Nothing"'):
        site_hooks.section("README.md", "Nothing")
    with pytest.raises(site_hooks.SiteError, match=r"there is no table x; there are: accuracy-by"):
        site_hooks.table("x")


def test_docstrings_become_markdown() -> None:
    docstring = "As :func:`f`::\n\n    x\n\n>>> f(1)\n2\n\n``a``, ``b``\n    Both.\n``c``\n    One."
    assert site_hooks.docstring_as_markdown(docstring) == (
        "As `f`:\n\n    x\n\n```pycon\n>>> f(1)\n2\n```\n\n"
        "\n``a``, ``b``\n:   Both.\n\n``c``\n:   One."
    )
