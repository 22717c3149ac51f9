"""The project's own files agree with each other: pins, versions, commands, what is committed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slotmatch.paths import NOTEBOOKS, PACKAGE, REPOSITORY
from slotmatch.reporting.report import Parameters, TrainingParameters
from slotmatch.segmentation import write_overlay


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def read_yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def requirements(pyproject: dict[str, Any]) -> list[Requirement]:
    project = pyproject["project"]
    lines = sum(project["optional-dependencies"].values(), start=project["dependencies"])
    return [wanted for wanted in map(Requirement, lines) if wanted.name != "slotmatch"]


def committed() -> list[Path]:
    """Files that are in the repository or would be after ``git add``."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def notebooks() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def code_cells(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell, "".join(cell["source"])


# Pins and versions


def test_the_lock_holds_a_version_of_everything_and_nothing_else_to_fetch_from(
    pyproject: dict[str, Any],
) -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    locked = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)
    versions = {canonicalize_name(name): version for name, version in locked.items()}
    for wanted in requirements(pyproject):
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), wanted


def third_party_imports(folder: Path) -> set[str]:
    """Distributions whose modules the Python files of a folder import, normalised names."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    ours = {"slotmatch", "benchmarks", *(path.stem for path in folder.glob("*.py"))}
    providers = metadata.packages_distributions()
    return {
        providers.get(module, [module])[0].lower().replace("_", "-")
        for module in modules - sys.stdlib_module_names - ours
    }


def test_every_import_is_declared(pyproject: dict[str, Any]) -> None:
    declared = {canonicalize_name(wanted.name) for wanted in requirements(pyproject)}
    assert third_party_imports(PACKAGE) <= declared
    assert third_party_imports(REPOSITORY / "tests") <= declared | {"packaging"}  # pytest's own


def test_environment_holds_python_and_leaves_the_rest_to_pyproject(
    pyproject: dict[str, Any],
) -> None:
    environment = read_yaml("environment.yml")
    *conda, pip = environment["dependencies"]
    assert conda == [f"python={pyproject['tool']['mypy']['python_version']}", "pip"]
    versions, install = pip["pip"]
    assert versions == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", install)
    assert extras is not None
    assert set(extras[1].split(",")) == {"book", "onnx", "test"}  # book has notebooks' extras


def test_binder_installs_the_same_versions_without_book_and_tests() -> None:
    *conda, pip = read_yaml("binder/environment.yml")["dependencies"]
    assert conda == read_yaml("environment.yml")["dependencies"][:-1]
    index, versions, install = pip["pip"]
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert versions == "-c ../requirements.lock"
    assert install == "-e ..[notebooks,onnx]"


def test_every_python_version_that_is_claimed_is_tested(pyproject: dict[str, Any]) -> None:
    claimed = [
        label.rpartition(" ")[2]
        for label in pyproject["project"]["classifiers"]
        if label.startswith("Programming Language :: Python :: 3.")
    ]
    oldest, newest = claimed[0], claimed[-1]
    after = f"3.{int(newest.removeprefix('3.')) + 1}"
    assert pyproject["project"]["requires-python"] == f">={oldest},<{after}"
    assert pyproject["tool"]["mypy"]["python_version"] == oldest
    assert pyproject["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    tried = jobs["elsewhere"]["strategy"]["matrix"]["include"]
    assert {(one["python"], one["resolution"]) for one in tried} == {
        (newest, "highest"),
        (oldest, "lowest-direct"),
    }


def test_pre_commit_runs_the_pinned_tools(pyproject: dict[str, Any]) -> None:
    (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
    tools = {hook["id"]: hook["additional_dependencies"] for hook in local["hooks"]}
    test_pins = {wanted.name: str(wanted) for wanted in requirements(pyproject)}
    assert tools["ruff-check"] == tools["ruff-format"] == [test_pins["ruff"]]
    assert tools["nbstripout"] == [test_pins["nbstripout"]]


def test_one_version_and_one_licence(pyproject: dict[str, Any]) -> None:
    citation, project = read_yaml("CITATION.cff"), pyproject["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "MIT"
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License")
    assert f"## {project['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_one_address() -> None:
    address = read_yaml("CITATION.cff")["repository-code"]
    assert read_yaml("_config.yml")["repository"]["url"] == address
    assert address in (REPOSITORY / "README.md").read_text()


def test_the_paper_is_cited_alike() -> None:
    paper = read_yaml("CITATION.cff")["preferred-citation"]
    bibliography = (REPOSITORY / "book" / "references.bib").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    for text in (bibliography.replace("{SlotMatch}", "SlotMatch"), readme):
        assert paper["title"] in text
        assert paper["url"] in text


# What continuous integration does


def test_the_workflow_runs_what_a_person_runs_and_publishes_the_book() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    commands = {name: [step.get("run") for step in job["steps"]] for name, job in jobs.items()}
    uses = {name: [step.get("uses", "") for step in job["steps"]] for name, job in jobs.items()}
    assert "bash .ci/run" in commands["test"]
    assert "make reproduce" in commands["book"]
    (upload,) = (step for step in jobs["book"]["steps"] if "upload-pages" in step.get("uses", ""))
    assert upload["with"]["path"] == "_build/html"
    assert any(name.startswith("actions/deploy-pages@") for name in uses["publish"])
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert jobs["book"]["needs"] == ["test", "elsewhere"]
    assert jobs["publish"]["needs"] == "book"
    assert read_yaml(".github/workflows/ci.yml")["permissions"] == {"contents": "read"}


def test_a_weekly_job_starts_from_nothing_and_follows_links() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    when = workflow[True]  # YAML 1.1 reads the key "on" so
    assert len(when["schedule"]) == 1
    weekly = workflow["jobs"]["weekly"]
    assert weekly["if"] == "github.event_name == 'schedule'"
    assert not any("cache" in step.get("with", {}) for step in weekly["steps"])
    install, reproduce, links = (step["run"] for step in weekly["steps"] if "run" in step)
    assert install == "make install"
    assert reproduce.endswith("-m slotmatch.reporting.report --preset smoke")
    assert links.endswith("--builder linkcheck")


def test_ci_runs_the_readmes_test_command() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make --no-print-directory test" in script.read_text()
    assert "\nmake test\n" in (REPOSITORY / "README.md").read_text()


def test_every_make_target_in_the_texts_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "book").rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"reproduce", "test"} <= named <= targets


def test_every_local_link_of_the_readme_leads_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (REPOSITORY / link).exists()] == []


@pytest.mark.slow
def test_the_readmes_python_runs_as_a_plain_script_with_an_empty_cache(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    write_overlay(frames, np.zeros((3, 48, 64), np.uint8), tmp_path / "my_video.mp4")
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "readme.py").write_text("\n".join([*blocks, "print(labels.shape)"]))
    done = subprocess.run(
        [sys.executable, "readme.py"],
        cwd=tmp_path,
        env=os.environ | {"SLOTMATCH_CACHE": str(tmp_path / "cache"), "SLOTMATCH_DATA": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "(3, 48, 64)\n"
    assert "build time" not in done.stderr
    assert (tmp_path / "my_video.slots.mp4").stat().st_size > 0
    assert "getContext" in (tmp_path / "slots.html").read_text()


# Setting up


FAKE_PYTHON = """\
#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) [ -z "$NO_INDEX" ] ;;
esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Runs make in a copy of the frame where python only logs its arguments; returns the log."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copy(REPOSITORY / "requirements.lock", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python3", FAKE_PYTHON), ("chromium", "#!/bin/sh\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log = tmp_path / "log"

    def run(target: str, *, succeeds: bool = True, **variables: str) -> list[str]:
        log.write_text("")
        environment = {
            **{name: text for name, text in os.environ.items() if "MAKE" not in name},
            "PATH": f"{tools}:{os.environ['PATH']}",
            "LOG": str(log),
            **variables,
        }
        done = subprocess.run(
            ["make", target], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert (done.returncode == 0) is succeeds, done.stderr
        return log.read_text().splitlines()

    return run


def test_both_commands_set_up_once(make: Any, tmp_path: Path) -> None:
    venv, install, fetch, *checks, test = make("test")
    assert fetch == "-m slotmatch.browser"
    assert venv == "-m venv .venv"
    lock = "--constraint requirements.lock"
    assert install == f"-m pip install --quiet --quiet {lock} --editable .[book,onnx,test]"
    assert [check.split()[1] for check in checks] == ["ruff", "ruff", "mypy", "nbstripout"]
    assert test == "-m pytest -q -m slow or not slow"
    assert make("test") == [*checks, test]
    assert make("reproduce") == ["-m slotmatch.reporting.report"]
    assert make("install") == []
    shutil.rmtree(tmp_path / ".venv")
    assert make("reproduce") == [venv, install, fetch, "-m slotmatch.reporting.report"]


def test_a_changed_pyproject_installs_again(make: Any, tmp_path: Path) -> None:
    make("install")
    stamp = tmp_path / ".venv" / ".installed"
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    install, _ = make("install")
    assert install.startswith("-m pip install")


def test_a_failed_installation_is_tried_again(make: Any) -> None:
    assert len(make("test", succeeds=False, NO_INDEX="1")) == 2
    install, *_, test = make("test")
    assert install.startswith("-m pip install")
    assert test.startswith("-m pytest")


# What is committed


def test_the_wheel_holds_everything_the_package_reads(pyproject: dict[str, Any]) -> None:
    patterns = pyproject["tool"]["setuptools"]["package-data"]["slotmatch"]
    names = [
        path.relative_to(PACKAGE).as_posix()
        for path in committed()
        if path.is_relative_to(PACKAGE) and path.suffix != ".py"
    ]
    assert "py.typed" in names
    assert [name for name in names if not any(fnmatch(name, known) for known in patterns)] == []
    for pattern in patterns:
        assert any(fnmatch(name, pattern) for name in names), pattern


# Notebooks and pages


def test_the_table_of_contents_names_every_page_and_no_other() -> None:
    contents = read_yaml("_toc.yml")
    listed = {contents["root"]}
    listed |= {chapter["file"] for part in contents["parts"] for chapter in part["chapters"]}
    files = [*(REPOSITORY / "book").rglob("*.md"), *NOTEBOOKS.glob("*.ipynb")]
    pages = {str(path.relative_to(REPOSITORY).with_suffix("")) for path in files}
    assert listed == pages


def test_every_reference_is_cited_and_every_citation_known() -> None:
    known = re.findall(
        r"^@\w+\{(\w+),", (REPOSITORY / "book/references.bib").read_text(), re.MULTILINE
    )
    pages = [*(REPOSITORY / "book").rglob("*.md"), *NOTEBOOKS.glob("*.ipynb")]
    cited = {
        key.strip()
        for page in pages
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text())
        for key in keys.split(",")
    }
    assert cited == set(known)
    assert len(known) == len(set(known))


def test_notebooks_take_the_same_annotated_parameters() -> None:
    for name, notebook in notebooks().items():
        (setup,) = (source for _, source in code_cells(notebook) if ".from_notebook(" in source)
        taken = TrainingParameters if "TrainingParameters" in setup else Parameters
        expected = [(field.name, field.type) for field in fields(taken)]
        tagged = [
            source
            for cell, source in code_cells(notebook)
            if "parameters" in cell["metadata"].get("tags", [])
        ]
        assert len(tagged) == 1, name
        lines = [line for line in tagged[0].splitlines() if line.strip()]
        types = {"str": str, "int": int, "bool": bool}
        declared = [
            (statement.target.id, types[ast.unparse(statement.annotation)])
            for statement in ast.parse(tagged[0]).body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        ]
        assert declared == expected, name
        assert all("  # " in line for line in lines), f"{name}: a parameter has no explanation"


def test_notebooks_define_short_functions_at_most() -> None:
    for name, notebook in notebooks().items():
        for _, source in code_cells(notebook):
            for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
                assert not isinstance(node, ast.ClassDef), f"{name}: {source[:60]}"
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 8, f"{name}: {node.name}"
