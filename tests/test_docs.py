"""The documentation says what the code does: every command, key, error, code, rule and name, and none that does not exist.

The pages are built as XML and read as a reader sees them, so what Sphinx makes from the code is checked as well. Examples run.
"""

import ast
import doctest
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, parse

import click
import msgspec
import pytest

import underlay
from schemas import SCHEMAS, keeps, validator
from underlay import errors, registry
from underlay.cli.main import cli
from underlay.config import document, parse_config
from underlay.following import moves
from underlay.model import Level
from underlay.policy import prune
from underlay.render import following as rendered, scrub as rendered_scrubs
from underlay.scrub import passes
from underlay.testing.bootimage import write_qcow2, write_raw

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "underlay"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

Pages = Mapping[str, Element]
Table = list[list[str]]


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Every page as Sphinx understands it; a warning is a failure."""
    target = tmp_path_factory.mktemp("docs")
    options = ["-q", "-W", "--keep-going", "-b", "xml", "-d", os.fspath(target / "trees")]
    argv = [sys.executable, "-m", "sphinx", *options, os.fspath(DOCS), os.fspath(target / "xml")]
    built = subprocess.run(argv, capture_output=True, text=True, check=False)
    if built.returncode != 0 or built.stderr:
        pytest.fail(built.stderr, pytrace=False)
    files = sorted((target / "xml").rglob("*.xml"))
    return {file.relative_to(target / "xml").with_suffix("").as_posix(): parse(file).getroot() for file in files}


def test_every_page_is_built(pages: Pages) -> None:
    assert {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} == set(pages)


# ------------------------------------------------------------------------------------------------------------ the command line


def test_every_command_and_option_is_in_the_reference(pages: Pages) -> None:
    page = pages["reference/command-line"]
    documented = {one for signature in page.iter("desc_signature") for one in signature.get("ids", "").split()}
    expected = {
        f"cmdoption-{'-'.join(path)}-{option.lstrip('-')}"
        for path, command in _commands(cli, ("underlay",))
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set() == expected - documented
    usages = _text(page)
    for path, _ in _commands(cli, ("underlay",)):
        assert f"{' '.join(path)} [OPTIONS]" in usages


def test_no_page_names_an_option_that_does_not_exist(pages: Pages) -> None:
    known = {
        option for _, command in _commands(cli, ()) for one in command.params for option in (*one.opts, *one.secondary_opts)
    } | {"--help"}
    for name, page in pages.items():
        named = {literal.split()[0] for literal in _literals(page) if re.fullmatch(r"--[a-z].*", literal)}
        assert set() == {option for option in named if option not in known}, name


def test_the_command_lines_in_the_documentation_can_be_parsed() -> None:
    lines = [(path, line) for path in TEXTS for line in _command_lines(path)]
    assert lines
    for path, line in lines:
        try:
            _parse(cli, shlex.split(line, comments=True)[1:], "underlay")
        except click.UsageError as error:
            pytest.fail(f"{path.name}: {line}: {error.format_message()}")


def test_every_exit_status_of_the_command_line_is_told(pages: Pages) -> None:
    [table] = [table for table in _tables(pages["reference/errors"]) if table[0] == ["Code", "Exit", "When"]]
    module = importlib.import_module("underlay.cli.main")
    failures = {code: keywords for keywords in _failures() for code in _constants(keywords["code"])}
    statuses = {"error.exit_code": click.UsageError.exit_code} | vars(module)
    expected = {code: str(statuses[ast.unparse(keywords["exit_code"])]) for code, keywords in failures.items()}
    assert {"usage", "interrupted", "internal"} <= expected.keys()
    assert expected == {code: status for code, status, _ in table[1:]}
    findings = importlib.import_module("underlay.cli.check").FINDINGS
    assert f"check ends with {findings} when it found a problem" in _text(pages["reference/command-line"])
    failures_of_prune = importlib.import_module("underlay.cli.prune").FAILURES
    assert f"prune ends with {failures_of_prune} when something" in _text(pages["reference/command-line"])


def _failures() -> Iterator[dict[str, ast.expr]]:
    """How the command line describes each kind of failure."""
    for _, call in _calls("_Failure"):
        yield {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, (*path, name))


def _parse(command: click.Command, arguments: list[str], name: str, parent: click.Context | None = None) -> None:
    """Parse a command line to its end, without running anything."""
    context = click.Context(command, info_name=name, parent=parent)
    if not isinstance(command, click.Group):
        command.parse_args(context, arguments)
        return
    rest = command.make_parser(context).parse_args(list(arguments))[1]
    if "--help" not in rest and (rest or not command.invoke_without_command):
        _, found, its_arguments = command.resolve_command(context, rest)
        assert found is not None
        _parse(found, its_arguments, rest[0], context)


def _command_lines(path: Path) -> Iterator[str]:
    for language, block in _blocks(path):
        if language in ("console", "shell"):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ")
                if line.startswith("underlay "):
                    yield line.partition(" 2>")[0]


# ----------------------------------------------------------------------------------------------------------- the configuration


def test_every_configuration_key_is_in_the_reference_with_its_default(pages: Pages) -> None:
    expected = {f"[{path}]": fields for path, fields in _structs(document.Document, "")}
    page = pages["reference/configuration"]
    documented = {}
    for section in page.iter("section"):
        title = section.find("title")
        if title is not None and (heading := _text(title)).startswith(("[", "The top of the file")):
            heading = heading if heading.startswith("[") else "[]"
            rows = [(key, row[2]) for row in _tables(section)[0][1:] for key in row[0].split(", ")]
            documented[heading] = {_bare(key): default for key, default in rows}
    assert {heading: set(keys) for heading, keys in expected.items()} == {key: set(rows) for key, rows in documented.items()}
    for heading, keys in expected.items():
        for key, default in keys.items():
            if default is not None:
                assert default == documented[heading][key], f"{heading} {key}"
            else:
                assert not documented[heading][key].startswith(("`", '"')), f"{heading} {key}"


def test_every_source_has_its_row_in_each_table_of_sources(pages: Pages) -> None:
    tables = [table for table in _tables(pages["reference/sources"]) if table[0][0] == "Scheme"]
    assert 5 == len(tables)
    for table in tables:
        assert sorted(registry._SOURCES) == sorted(scheme for row in table[1:] for scheme in row[0].split(", ")), table[0]
    [refs] = [table for table in tables if table[0] == ["Scheme", "Ref", "Extra"]]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"glance", "s3"} == {extra for _, _, extra in refs[1:] if extra} <= extras.keys()


def test_every_backend_has_its_column_of_traits(pages: Pages) -> None:
    [table] = [table for table in _tables(pages["reference/backends"]) if table[0][0] == "Trait"]
    assert sorted(registry._DISKS) == table[0][1:]
    words = {True: "yes", False: "no"}
    for column, name in enumerate(table[0][1:], start=1):
        traits = registry.open_backend(name, {"lvm": {"volume_group": "vg"}}).traits
        expected = {
            field.name: ", ".join(sorted(value)) if isinstance(value, frozenset) else words.get(value, value)
            for field in msgspec.structs.fields(type(traits))
            if (value := getattr(traits, field.name)) is not None and field.name != "name"
        }
        assert expected == {row[0]: row[column] for row in table[1:]}


def test_the_services_that_sources_were_tried_against_are_those_of_the_tests(pages: Pages) -> None:
    told = _text(pages["reference/sources"]).lower()
    components = ROOT / "tests" / "components"
    environments = [path for kind in ("glance", "objects", "oci") for path in (components / kind).glob("*_environment.py")]
    assert 5 == len(environments)
    for path in environments:
        text = path.read_text(encoding="utf-8")
        package = re.search(r'package="([^"]+)"', text)
        version = re.search(r'(?:version=|VERSION = )"([^"]+)"', text)
        assert version is not None
        assert f"{package[1] if package else path.stem.removesuffix('_environment')} {version[1]}" in told
        for name, beside in re.findall(r'"(keystone|openstacksdk)==([^"]+)"', text):
            assert f"{name} {beside}" in told


def test_the_readme_leads_to_every_guide_concept_and_reference_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = ("guides", "concepts", "reference")
    expected = {path.relative_to(ROOT).as_posix() for kind in kinds for path in (DOCS / kind).glob("*.md")}
    assert expected == set(re.findall(rf"\((docs/(?:{'|'.join(kinds)})/[^)]+\.md)\)", readme))


def test_the_configurations_in_the_documentation_are_valid() -> None:
    found = [(path, block) for path in TEXTS for language, block in _blocks(path) if language == "toml" and "[caches." in block]
    assert len(found) >= 2
    for path, block in found:
        parse_config(block, origin=path)


def test_every_environment_variable_is_told(pages: Pages) -> None:
    readers = [path for path in _modules() if "os.environ" in path.read_text(encoding="utf-8")]
    assert [SOURCE / "config" / "environment.py"] == readers
    constants = [node.value for node in ast.walk(ast.parse(readers[0].read_text())) if isinstance(node, ast.Constant)]
    read = {value for value in constants if isinstance(value, str) and re.fullmatch(r"[A-Za-z]+_[A-Za-z_]+", value)}
    table = next(table for table in _tables(pages["reference/configuration"]) if table[0][0] == "Variable")
    assert read == {name for row in table[1:] for name in row[0].split(", ")}


def _structs(struct: type[msgspec.Struct], path: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Each table of the configuration with its keys and their defaults as TOML; None where the default is not a value."""
    keys: dict[str, str | None] = {}
    for field in msgspec.structs.fields(struct):
        inner = f"{path}.{field.name}".lstrip(".")
        if inspect.isclass(field.type) and issubclass(field.type, msgspec.Struct):
            yield from _structs(field.type, inner)
        elif path == "" and getattr(field.type, "__origin__", None) is dict:
            [_, value] = field.type.__args__
            yield from _structs(value, f"{inner}.NAME")
        else:
            keys[field.name] = _toml(field)
    if keys:
        yield path, keys


def _toml(field: msgspec.structs.FieldInfo) -> str | None:
    default = field.default if field.default is not msgspec.NODEFAULT else None
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return None if default is None else json.dumps(default)


# ------------------------------------------------------------------------------------------------------------ codes and rules


def test_every_error_is_in_the_reference_as_it_is(pages: Pages) -> None:
    expected = {
        name: (f"{one.code}", str(one.exit_code), str(one.http_status), "yes" if one.transient else "")
        for name, one in _errors().items()
        if one is not errors.UnderlayError
    }
    rows = [row for table in _tables(pages["reference/errors"]) if len(table[0]) == 6 for row in table[1:]]
    assert expected == {row[0]: tuple(row[1:5]) for row in rows}
    assert len(expected) == len(rows)
    for row in rows:
        meaning = (inspect.getdoc(_errors()[row[0]]) or "").partition("\n")[0].replace("``", "")
        assert row[5].startswith(meaning)
        assert len(row[5]) > len(meaning) + 10, f"{row[0]} says what to do"


def test_no_page_names_an_error_that_does_not_exist(pages: Pages) -> None:
    named = {literal for literal in _literals(pages["reference/errors"]) if re.fullmatch(r"([A-Z][a-z]+){2,}", literal)}
    assert set() == named - _errors().keys()


def test_no_two_errors_share_a_code_or_an_exit_status() -> None:
    classes = _errors().values()
    assert len({one.code for one in classes}) == len(classes)
    assert len({one.exit_code for one in classes}) == len(classes)


def test_every_reason_is_in_the_reference(pages: Pages) -> None:
    documented = {row[0] for row in _coded(pages, ["Code", "Meaning"], ["Code", "Keeps", "Meaning"])}
    uses, unknowns = _calls("Use", argument=2), _calls("Unknown", argument=0)
    given = {code for code, _ in (*_calls("Reason", argument=0), *uses, *unknowns)} | prune._PHRASES.keys()
    given |= {code for code in _all_constants(SOURCE / "usage" / "mounts.py") if code.startswith("root-")}
    assert set() == given - documented
    somewhere = {constant for path in _modules() for constant in _all_constants(path)}
    assert set() == documented - somewhere


def test_what_an_unknown_keeps_is_told_as_it_is(pages: Pages) -> None:
    documented = {row[0]: row[1] for row in _coded(pages, ["Code", "Keeps", "Meaning"])}
    for code, call in _calls("Unknown", argument=0):
        keywords = {keyword.arg for keyword in call.keywords}
        if len(call.args) > 2 and ast.unparse(call.args[2]) == "_EVERYTHING":
            assert "everything in that cache" == documented[code]
        elif "keeps" not in keywords:
            assert ("every image" + " of that cache" * ("root" in keywords or len(call.args) > 3)) == documented[code]


def test_every_problem_is_in_the_reference(pages: Pages) -> None:
    documented = {row[0] for row in _coded(pages, ["Problem", "Meaning"])}
    given = {code for code, _ in (*_calls("Problem", argument=0), *_calls("_problem", argument=0))}
    assert set() == given - documented
    somewhere = {constant for path in _modules() for constant in _all_constants(path)}
    assert set() == documented - somewhere


def test_every_event_of_a_prune_is_in_the_reference_with_its_fields(pages: Pages) -> None:
    documented = {row[0]: row[1] for row in _coded(pages, ["Event", "Fields", "Meaning"])}
    assert {code for code, _ in _calls("_tell", argument=0)} | {"leased"} == documented.keys()
    assert ("path, reason, freed", "path, reason") == (documented["removed"], documented["kept"])


def _coded(pages: Pages, *headings: list[str]) -> Iterator[list[str]]:
    """The rows of the tables with these headings."""
    for table in _tables(pages["reference/reasons"]):
        if table[0] in headings:
            yield from table[1:]


def _all_constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_event_is_in_the_reference_with_its_level_and_fields(pages: Pages) -> None:
    expected = {}
    for code, call in _calls("tell", argument=2):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
        level = keywords.pop("level", "Level.DEBUG").removeprefix("Level.").lower()
        expected[code] = (level, ", ".join(key for key in keywords if key != "detail"))
    [table] = [table for table in _tables(pages["reference/reasons"]) if table[0] == ["Code", "Level", "Fields", "Meaning"]]
    assert expected == {row[0]: (row[1], row[2]) for row in table[1:]}


def test_every_other_event_has_the_code_of_something_that_is_in_the_reference(pages: Pages) -> None:
    codes = [keyword.value for _, call in _calls("Event") for keyword in call.keywords if keyword.arg == "code"]
    assert {"code", "reason.code", "ensured.reason.code", "problem.code", "error.code", "one.outcome"} >= {
        ast.unparse(code) for code in codes if not isinstance(code, ast.Constant)
    }
    for code in (code.value for code in codes if isinstance(code, ast.Constant)):
        assert code in set(_literals(pages["reference/reasons"]))


def test_every_outcome_of_a_refresh_is_in_the_reference_with_its_level(pages: Pages) -> None:
    [table] = [table for table in _tables(pages["reference/reasons"]) if table[0] == ["Outcome", "Level", "Meaning"]]
    expected = {outcome: moves._LEVELS.get(outcome, Level.DEBUG).value for outcome in rendered._STYLES}
    assert expected == {outcome: level for outcome, level, _ in table[1:]}


def test_every_outcome_of_a_scrub_is_in_the_reference_with_its_level(pages: Pages) -> None:
    [table] = [table for table in _tables(pages["reference/reasons"]) if table[0] == ["Image", "Level", "Meaning"]]
    expected = {outcome: passes._LEVELS.get(outcome, Level.INFO).value for outcome in rendered_scrubs._STYLES}
    assert expected == {outcome: level for outcome, level, _ in table[1:]}
    schema = json.loads((SCHEMAS / "scrub.json").read_text(encoding="utf-8"))
    assert set(expected) == set(schema["properties"]["images"]["items"]["properties"]["outcome"]["enum"])


def test_every_finding_is_in_the_reference_with_its_level(pages: Pages) -> None:
    expected = set()
    for node in ast.walk(ast.parse((SOURCE / "check.py").read_text(encoding="utf-8"))):
        keywords = {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}
        if keywords.keys() >= {"code", "level"}:
            codes, levels = _branches(keywords["code"]), _branches(keywords["level"])
            levels = levels * len(codes) if len(levels) == 1 else levels
            expected |= {
                (code.value, ast.unparse(level).removeprefix("Level.").lower())
                for code, level in zip(codes, levels, strict=True)
                if isinstance(code, ast.Constant)
            }
    [table] = [table for table in _tables(pages["reference/reasons"]) if table[0] == ["Code", "Level", "Meaning"]]
    assert expected == {(row[0], row[1]) for row in table[1:]}


def test_every_inspection_rule_is_in_the_reference(pages: Pages) -> None:
    [table] = _tables(pages["reference/rules"])
    rows = [row[0] for row in table[1:]]
    assert _rules() == set(rows)
    assert sorted(rows) == rows


def test_no_page_names_a_code_that_does_not_exist(pages: Pages) -> None:
    reference = [pages[f"reference/{name}"] for name in ("errors", "reasons", "rules", "compute")]
    known = {cell for page in reference for table in _tables(page) for row in table[1:] for cell in row[:3]}
    for name, page in pages.items():
        named = {literal for literal in _literals(page) if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", literal)}
        assert set() == named - known - {"qemu-img", "qemu-utils"}, name


def _errors() -> Mapping[str, type[errors.UnderlayError]]:
    found = vars(errors).values()
    return {one.__name__: one for one in found if inspect.isclass(one) and issubclass(one, errors.UnderlayError)}


def _modules() -> list[Path]:
    """The package without what it ships for tests."""
    return [path for path in sorted(SOURCE.rglob("*.py")) if not path.is_relative_to(SOURCE / "testing")]


def _trees() -> Iterator[ast.Module]:
    for path in _modules():
        yield ast.parse(path.read_text(encoding="utf-8"))


def _calls(name: str, *, argument: int | None = None) -> list[tuple[str, ast.Call]]:
    """The calls of a function, each with the text that its positional argument holds (or nothing)."""
    found = []
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) == name:
                texts = [""] if argument is None else _constants(*node.args[argument : argument + 1])
                found += [(text, node) for text in texts]
    assert found
    return found


def _called(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""


def _branches(node: ast.expr) -> list[ast.expr]:
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def _constants(*nodes: ast.expr) -> list[str]:
    branches = [one for node in nodes for one in _branches(node)]
    return [one.value for one in branches if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def _rules() -> set[str]:
    """Rule names: ``rule="…"``, the first argument of ``_refused``, and what a format's complaints begin with."""
    found: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found |= {text for keyword in node.keywords if keyword.arg == "rule" for text in _constants(keyword.value)}
                found |= set(_constants(*node.args[:1])) if _called(node) == "_refused" else set()
            elif isinstance(node, ast.FunctionDef) and node.name == "_complaints":
                yields = [one.value for one in ast.walk(node) if isinstance(one, ast.Yield)]
                found |= {text for one in yields if isinstance(one, ast.Tuple) for text in _constants(*one.elts[:1])}
    return found


# ------------------------------------------------------------------------------------------------------------ names and words


def test_every_public_name_is_in_the_reference(pages: Pages) -> None:
    ids = {one for signature in pages["reference/python"].iter("desc_signature") for one in signature.get("ids", "").split()}
    assert set(underlay.__all__) == {name.removeprefix("underlay.") for name in ids if name.count(".") == 1}


def test_the_layers_in_the_documentation_are_those_that_are_enforced(pages: Pages) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    [enforced] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    [table] = _tables(pages["design/layers"])
    documented: dict[str, set[str]] = {}
    for line, module, purpose in table[1:]:
        assert len(purpose) > 10, module
        documented.setdefault(line, set()).add(module.partition(".")[0])
    assert [{name.strip() for name in re.split(r"[|:]", line)} for line in enforced] == list(documented.values())
    assert sorted(map(int, documented), reverse=True) == list(map(int, documented))
    for module in (row[1] for row in table[1:]):
        assert (SOURCE / Path(*module.split("."))).with_suffix(".py").exists() or (SOURCE / Path(*module.split("."))).is_dir()


def test_words_that_are_not_used_are_in_no_public_name(pages: Pages) -> None:
    table = next(table for table in _tables(pages["glossary"]) if table[0][0] == "Not used")
    assert {"manager", "helper", "util", "handler"} <= {row[0] for row in table[1:]}
    excepted = {name for row in table[1:] for name in re.findall(r"\w+", row[2])}
    unused = {row[0] for row in table[1:]}
    for path in sorted(SOURCE.rglob("*.py")):
        # Whose names are those of the classes whose place they take, and of the contract that those keep.
        contracts = ("openstack", "compute", "testing/fakedriver", "testing/compute_suite")
        fixed = any(path.is_relative_to(SOURCE / one) for one in contracts)
        for name in () if fixed else _public_names(path):
            words = {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
            assert name in excepted or not words & unused, f"{path.name}: {name}"


def test_every_word_of_the_glossary_has_a_meaning_once(pages: Pages) -> None:
    words = [row[0] for table in _tables(pages["glossary"])[:2] for row in table[1:]]
    assert len(words) == len(set(words))
    [first, *_] = _tables(pages["glossary"])
    assert sorted((row[0] for row in first[1:]), key=str.lower) == [row[0] for row in first[1:]]


def _public_names(path: Path) -> Iterator[str]:
    if not path.stem.startswith("_"):
        yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


# ------------------------------------------------------------------------------------------------------------------------ links


def test_the_links_of_the_texts_beside_the_documentation_lead_somewhere() -> None:
    for path in TEXTS[:3]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"


def test_pages_that_the_code_names_exist() -> None:
    files = [*SOURCE.rglob("*.py"), ROOT / "pyproject.toml"]
    named = {
        (file.name, page) for file in files for page in re.findall(r"\bdocs/[a-z]+(?:/[a-z-]+)?(?:\.md)?", file.read_text())
    }
    named = {(name, page) for name, page in named if not page.startswith("docs/interop")}  # QEMU's
    assert named
    assert set() == {(name, page) for name, page in named if not (ROOT / page).exists()}


@pytest.mark.parametrize(
    ("name", "all_shown"),
    [
        ("terminal", ("$ underlay fetch http://127.0.0.1:", "$ underlay list", "$ underlay du", "used by 2 disks")),
        ("virtual-machine", ("$ underlay vm create web", "$ underlay vm list", "UNDERLAY BOOTED", "web (shutdown, 1 proc")),
    ],
)
def test_a_picture_is_the_one_that_its_script_makes(name: str, all_shown: Sequence[str]) -> None:
    picture = parse(DOCS / "pictures" / f"{name}.svg").getroot()
    text = "".join(picture.itertext()).replace("\xa0", " ")
    for shown in all_shown:
        assert shown in text
    assert "http" not in " ".join(value for node in picture.iter() for name, value in node.attrib.items() if "href" in name)


def test_the_changelogs_fragments_can_be_assembled() -> None:
    argv = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next", "--dir", os.fspath(ROOT)]
    draft = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    fragments = sorted((ROOT / "changelog.d").glob("*.md"))
    assert fragments
    for fragment in fragments:
        assert re.fullmatch(r"(\+[a-z0-9-]+|\d+)\.(breaking|feature|fix)(\.\d+)?\.md", fragment.name)
        assert " ".join(fragment.read_text(encoding="utf-8").split()[:8]) in " ".join(draft.split())


# ---------------------------------------------------------------------------------------------------------------- JSON answers


@pytest.mark.component("qemu-img")
def test_the_json_answers_of_real_commands_keep_to_their_schemas(short_directory: Path) -> None:
    host = _Host(short_directory)
    image = host.directory / "tiny.qcow2"
    write_qcow2(image, size=16 << 20, message="docs")
    ref = image.as_uri()
    keeps("fetch", fetched := host.run("fetch", ref))
    assert "fetched" == fetched["reason"]["code"]
    keeps("disk", host.run("disk", "create", "web-1", "--image", ref, "--size", "1GiB"))
    keeps("disk", host.run("disk", "create", "web-2", "--image", ref, "--path", os.fspath(host.directory / "elsewhere")))
    keeps("disk", host.run("disk", "show", "web-1"))
    keeps("disk", host.run("disk", "resize", "web-1", "2GiB"))
    keeps("disk-attachment", host.run("disk", "attachment", "web-1"))
    keeps("disk-backends", host.run("disk", "backends"))
    keeps("disk-extract", host.run("disk", "extract", "web-1", os.fspath(host.directory / "extracted")))
    keeps("disk", host.run("disk", "flatten", "web-2", "--path", os.fspath(host.directory / "elsewhere")))
    host.add_unrecorded()
    keeps("disk-list", disks := host.run("disk", "list"))
    assert {"qcow2", None} == {disk["format"] for disk in disks["disks"]}
    keeps("list", listed := host.run("list"))
    assert {True, False} == {one["recorded"] for one in listed["images"]}
    assert ["not-an-image"] == [problem["code"] for problem in listed["problems"]]
    keeps("show", shown := host.run("show", ref))
    assert 2 == len(shown["images"][0]["disks"])
    keeps("du", host.run("du"))
    keeps("du", host.run("du", "--images"))
    keeps("check", checked := host.run("check", status=3))
    assert {"info", "problem"} <= {finding["level"] for finding in checked["findings"]}
    keeps("disk-remove", host.run("disk", "remove", "web-1"))
    (host.directory / "elsewhere").unlink()
    keeps("disk-forget", host.run("disk", "forget", os.fspath(host.directory / "elsewhere")))
    keeps("precache", host.run("precache", ref, "gopher://host/a", status=11))
    keeps("refresh", refreshed := host.run("refresh", ref, "gopher://host/a", "--dry-run", status=11))
    assert ["current", "error"] == [one["outcome"] for one in refreshed["refs"]]
    keeps("refresh", host.run("refresh", ref))
    keeps("refresh", unfollowed := host.run("refresh"))
    assert ["let-go"] == [version["action"] for version in unfollowed["refs"][0]["versions"]]
    keeps("scrub", planned := host.run("scrub", "--dry-run"))
    assert {"scrub"} == {one["action"] for one in planned["left"]}
    keeps("scrub", scrubbed := host.run("scrub"))
    assert {"sound", "readable"} == {one["outcome"] for one in scrubbed["images"]}
    keeps("scrub", host.run("scrub", "--older-than", "1d"))
    keeps("leases", host.run("pin", ref, "--holder", "docs"))
    keeps("leases", host.run("lease", ref, "--for", "1h"))
    keeps("leases", host.run("leases"))
    keeps("show", host.run("show", ref))
    keeps("explain", host.run("explain", ref))
    keeps("released", host.run("unpin", ref, "--holder", "docs"))
    (host.directory / "base" / f"{sha1(b'old').hexdigest()}.part").touch()
    os.utime(host.directory / "base" / f"{sha1(b'old').hexdigest()}.part", (0, 0))
    keeps("prune", planned := host.run("prune", "--dry-run"))
    assert {"keep", "remove"} == {verdict["action"] for verdict in planned["plan"]}
    keeps("prune", pruned := host.run("prune"))
    assert 1 == len(pruned["removed"])
    keeps("prune", host.run("evict", sha1(b"some id").hexdigest()))
    keeps("hosts", host.run("hosts"))


def test_the_json_answers_about_damage_keep_to_their_schemas(short_directory: Path) -> None:
    host = _Host(short_directory)
    write_raw(host.directory / "a.raw", size=1 << 20, message="docs")
    host.run("fetch", (host.directory / "a.raw").as_uri())
    [image] = host.directory.glob("base/*.raw")
    os.truncate(image, 1000)
    (host.directory / "a.raw").unlink()
    keeps("scrub", scrubbed := host.run("scrub", status=35))
    assert ["refetch-failed"] == [one["repair"]["code"] for one in scrubbed["images"]]
    keeps("show", shown := host.run("show", image.name))
    assert ["size-differs"] == [one["damage"]["code"] for one in shown["images"]]
    keeps("list", host.run("list"))
    keeps("explain", host.run("explain", image.name))
    keeps("scrub", host.run("scrub", "--dry-run"))


def test_the_json_answers_about_hosts_keep_to_their_schemas(short_directory: Path) -> None:
    host = _Host(short_directory)
    config_file = host.directory / "underlay.toml"
    text = config_file.read_text(encoding="utf-8").replace("[instances]\n", '[instances]\nhosts = ["node1", "node2"]\n')
    config_file.write_text(f'host = "node1"\n{text}', encoding="utf-8")
    host.run("prune")
    keeps("hosts", answer := host.run("hosts"))
    assert [True, False] == [one["complete"] is not None for one in answer["hosts"]]
    keeps("hosts-retire", host.run("hosts", "retire", "node1"))


@pytest.mark.component("qemu-img")
def test_errors_and_events_keep_to_their_schemas(short_directory: Path) -> None:
    host = _Host(short_directory)
    image = host.directory / "tiny.qcow2"
    write_qcow2(image, size=16 << 20, message="docs")
    for arguments, code, status in (
        (("fetch", "nonsense"), "invalid-ref", 10),
        (("fetch", f"{image.as_uri()}.none"), "image-not-found", 20),
        (("show", "nothing-of-the-kind"), "not-cached", 40),
        (("list", "--nonsense"), "usage", 2),
    ):
        keeps("error", answer := host.run(*arguments, status=status))
        assert code == answer["error"]["code"]
    events = host.events("fetch", image.as_uri())
    assert {"fetching", "verified", "published", "fetched"} <= {event["event"] for event in events}
    for event in events:
        keeps("event", event)


def test_a_schema_refuses_an_answer_that_is_not_its() -> None:
    for name in _schemas():
        if name != "things":
            assert not validator(name).is_valid({"nothing": "of the kind"}), name


def test_every_command_that_answers_in_json_has_its_schema(pages: Pages) -> None:
    [table] = _tables(pages["reference/json"])
    linked = {schema.removesuffix(".json") for _, schema in table[1:]}
    assert _schemas() == linked | {"things"}
    answering = {
        " ".join(path)
        for path, command in _commands(cli, ())
        if any("--json" in parameter.opts for parameter in command.params)
    }
    commands = [row[0] for row in table[1:] if not row[0].startswith(("any that fails", "an event"))]
    assert sorted(answering) == sorted(name.strip() for names in commands for name in names.split(","))


class _Host:
    """A configured host in a directory, on which the real command is run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"UNDERLAY_CONFIG": os.fspath(configured(directory))}

    def run(self, *arguments: str, status: int = 0) -> Any:
        """The one object that a command answers with."""
        done = self._run([*arguments, "--json"])
        assert status == done.returncode, done.stdout + done.stderr
        assert 1 == len(done.stdout.splitlines())
        return json.loads(done.stdout)

    def events(self, *arguments: str) -> list[Any]:
        """The events of a command."""
        done = self._run(["-v", "-v", "--log-format", "json", *arguments])
        assert 0 == done.returncode
        return [json.loads(line) for line in done.stderr.splitlines()]

    def add_unrecorded(self) -> None:
        """An image and a disk that something else made, and a symlink where an image should be."""
        write_raw(self.directory / "base" / sha1(b"some id").hexdigest(), size=1 << 20, message="unrecorded")
        (self.directory / "instances" / "other").mkdir()
        (self.directory / "instances" / "other" / "disk").write_bytes(b"unknown")
        (self.directory / "base" / sha1(b"another id").hexdigest()).symlink_to("/nowhere")

    def _run(self, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "underlay", *arguments]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)


def _schemas() -> set[str]:
    return {path.stem for path in SCHEMAS.glob("*.json")}


# --------------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize(
    "path", [path for path in TEXTS if ">>> " in path.read_text(encoding="utf-8")], ids=lambda path: path.stem
)
def test_the_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_qcow2(tmp_path / "debian-12.qcow2", size=1 << 30, message="docs")
    monkeypatch.setenv("UNDERLAY_CONFIG", os.fspath(configured(tmp_path)))
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(_only_python(path), {}, path.name, os.fspath(path), 0)
    told: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.DocTestRunner(optionflags=options).run(examples, out=told.append)
    assert outcome.attempted >= 5
    assert 0 == outcome.failed, "".join(told)


def test_the_examples_of_the_packages_own_docstring_run() -> None:
    assert (0, 2) == tuple(doctest.testmod(underlay))


@pytest.mark.component("qemu-img", "qemu-system-x86_64")
def test_the_first_steps_can_be_walked(short_directory: Path) -> None:
    _walk(DOCS / "guides" / "first-steps.md", short_directory, {})


@pytest.mark.component("gpg", "gpgv")
def test_a_download_is_verified_as_its_guide_says(short_directory: Path) -> None:
    _walk(DOCS / "guides" / "verified-downloads.md", short_directory, {})


@pytest.mark.component("qemu-img")
def test_an_image_is_followed_as_its_guide_says(short_directory: Path) -> None:
    _walk(DOCS / "guides" / "following.md", short_directory, {})


@pytest.mark.component("leases")
def test_images_are_read_again_as_the_guide_says(short_directory: Path) -> None:
    _walk(DOCS / "guides" / "scrubbing.md", short_directory, {})


@pytest.mark.component("qemu-img")
def test_an_existing_nova_host_is_found_as_its_guide_says(short_directory: Path) -> None:
    guide = DOCS / "guides" / "existing-nova-host.md"
    places = {"/var/lib/nova/instances": f"{short_directory}/instances", "/etc/underlay": f"{short_directory}/etc"}
    _nova_host(short_directory / "instances")
    [configuration] = [block for language, block in _blocks(guide) if language == "toml"]
    (short_directory / "etc").mkdir()
    (short_directory / "etc" / "underlay.toml").write_text(_moved(configuration, places), encoding="utf-8")
    before = _everything(short_directory)
    _walk(guide, short_directory, places)
    assert before == _everything(short_directory)


@pytest.mark.component("qemu-img", "leases")
def test_a_host_is_pruned_as_its_guide_says(short_directory: Path) -> None:
    guide = DOCS / "guides" / "pruning.md"
    places = {"/var/lib/nova/instances": f"{short_directory}/instances", "/etc/underlay": f"{short_directory}/etc"}
    instances = short_directory / "instances"
    base, disk = instances / "_base", instances / "4f0b7a6e" / "disk"
    for directory in (base, disk.parent, short_directory / "etc"):
        directory.mkdir(parents=True)
    [unused] = set(re.findall(r"\b[0-9a-f]{40}\b", guide.read_text(encoding="utf-8")))
    for name in (sha1(b"an image's id").hexdigest(), unused, f"{unused}.part"):
        (base / name).write_bytes(os.urandom(1 << 20))
        os.utime(base / name, (time.time() - 10 * 86400,) * 2)
    backing = ["-b", os.fspath(base / sha1(b"an image's id").hexdigest()), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, os.fspath(disk)], check=True)
    first = next(block for language, block in _blocks(guide) if language == "toml")
    (short_directory / "etc" / "underlay.toml").write_text(_moved(first, places), encoding="utf-8")
    _walk(guide, short_directory, places)
    assert {".underlay", sha1(b"an image's id").hexdigest()} == {path.name for path in base.iterdir()}


def _nova_host(instances: Path) -> None:
    base = instances / "_base"
    base.mkdir(parents=True)
    (instances / "locks").mkdir()
    write_raw(base / sha1(b"an image's id").hexdigest(), size=1 << 20, message="original")
    (base / f"{sha1(b'a second image').hexdigest()}.part").write_bytes(b"half")
    (base / "ephemeral_1_0706d66").write_bytes(bytes(1 << 20))
    (base / "ephemeral_1_0706d66").chmod(0o666)
    (base / "README").write_text("an operator's notes")
    disk = instances / "4f0b7a6e" / "disk"
    disk.parent.mkdir()
    write_raw(disk, size=1 << 20, message="an instance of the host")
    (disk.parent / "disk.info").write_text(json.dumps({os.fspath(disk): "raw"}))
    (instances / "compute_nodes").write_text(json.dumps({"node1": time.time()}))


def _everything(directory: Path) -> list[tuple[str, int, int]]:
    found = ((path, path.stat()) for path in sorted(directory.rglob("*")))
    return [(os.fspath(path), status.st_mtime_ns, status.st_ino) for path, status in found]


def _walk(path: Path, directory: Path, places: Mapping[str, str]) -> None:
    """Run a guide's console blocks in one shell and compare what each command prints with what the guide shows."""
    steps = [step for language, block in _blocks(path) if language == "console" for step in _steps(_moved(block, places))]
    assert steps
    mark = "---- next ----"
    script = f"mark() {{ local status=$?; echo; echo '{mark}'; return $status; }}\n"
    script += "".join(f"{command}\nmark\n" for command, _ in steps)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.fspath(directory),
        "LANG": "C.UTF-8",
    }
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    printed = ran.stdout.decode().split(f"\n{mark}\n")[:-1]
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for (command, expected), got in zip(steps, printed, strict=True):
        assert checker.check_output(expected.strip(), got.strip(), options), f"$ {command}\n{got}\ninstead of\n{expected}"


def _steps(block: str) -> Iterator[tuple[str, str]]:
    """``(command, output)`` of each command in a console block; a line that begins with ``>`` continues a command."""
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = step.splitlines()
        length = next((number for number, line in enumerate(lines[1:], 1) if not re.match(r">( |$)", line)), len(lines))
        yield "\n".join([lines[0], *(line[2:] for line in lines[1:length])]), "\n".join(lines[length:])


def _moved(text: str, places: Mapping[str, str]) -> str:
    for told, real in places.items():
        text = text.replace(told, real)
    return text


def _only_python(path: Path) -> str:
    """The page's Python examples, everything else blank, so that line numbers stay."""
    kept, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        inside = line.startswith("```pycon") or (inside and not line.startswith("```"))
        kept.append(line if inside and not line.startswith("```") else "")
    return "\n".join(kept) + "\n"


def configured(directory: Path) -> Path:
    """A configuration whose directories, made here, lie below ``directory``; files of it may be fetched."""
    for name in ("base", "instances"):
        (directory / name).mkdir()
    file = directory / "underlay.toml"
    file.write_text(
        f'[instances]\npath = "{directory}/instances"\n[caches.base]\nkind = "base"\npath = "{directory}/base"\n'
        f'[sources.file]\nallowed_paths = ["{directory}"]\n',
        encoding="utf-8",
    )
    return file


# ------------------------------------------------------------------------------------------------------------ reading pages


def _blocks(path: Path) -> list[tuple[str, str]]:
    """``(language, content)`` of each fenced block."""
    found = re.findall(r"^```([^\n`]+)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(language, content) for language, content in found]


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _literals(page: Element) -> Iterator[str]:
    for literal in page.iter("literal"):
        yield _text(literal)


def _tables(element: Element) -> list[Table]:
    return [[[_text(cell) for cell in row.iter("entry")] for row in table.iter("row")] for table in element.iter("table")]


def _bare(text: str) -> str:
    return text.strip("`")
