"""The documentation: its commands, fields, Python, tables, figures and links, as far as seconds can tell."""

import ast
import importlib.util
import inspect
import io
import pathlib
import re
import sys
import textwrap

import jax
import numpy as np
import pytest
from helpers.methods import context_of
from helpers.pages import LINK, anchors, blocks, commands, files_of_pages, pages, prose, python_block
from helpers.tiny import CONFIGS, ROOT
from helpers.untrained import write_run
from helpers.views import batch_of
from PIL import Image

import maskcl_jax as mc
from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.__main__ import COMMANDS
from maskcl_jax.api import fields
from maskcl_jax.evaluate import recipes, settings
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.methods import METHODS, create

sys.path.insert(0, str(ROOT / "tests/campaigns"))
import commands as campaign

SHELL = blocks("bash")
PYTHON = blocks("python")
# Programs that are not ours: a line of theirs is accepted as it stands.
OTHERS = {"git", "cd", "source", "ruff", "mypy", "sphinx-build", "pre-commit", ".ci/run"}


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with the files that the pages tell their reader to write."""
    folder = tmp_path_factory.mktemp("workspace")
    for name, code in files_of_pages().items():
        (folder / name).write_text(code)
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


# --- Commands -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_is_understood(block, workspace, monkeypatch):
    """Files, flags, configs, fields, protocols and formats exist; what cannot be checked so is marked as not run."""
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)
    for words in commands(block.code):
        if words[:2] == ["python", "-m"] and words[2].startswith("maskcl_jax"):
            check_ours(words[2], words[3:])
        elif words[0] == "python" and words[1].endswith(".py"):
            check_script(ROOT / words[1], words[2:])
        elif words[:2] == ["pip", "install"]:
            check_extras(words[2:])
        elif words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
        elif words[0].startswith("launch/"):
            check_script(ROOT / words[0], [word for word in words[1:] if not word.startswith("--config")])
            assert block.reason, f"{block}: mark it as not run"
        else:
            assert words[0] in OTHERS or words[:3] == ["python", "-m", "venv"] or block.reason, f"{block}: {words}"


def check_ours(module: str, words: list[str]) -> None:
    """A command of the package."""
    name = module.removeprefix("maskcl_jax").removeprefix(".")
    assert not name or name in COMMANDS, module
    rest, overrides = cli.split_overrides(words)
    values = dict(word.removeprefix("--").partition("=")[::2] for word in rest if word.startswith("--"))
    check_flags(name, values)
    if name == "evaluate":
        check_evaluation(values, overrides)
        return
    if name == "export":
        assert values["format"] in LAYOUTS
    if name == "import_torch":
        assert values["method"] in LAYOUTS
    if "config" in values:
        config = cli.load(values["config"], overrides)
        config_lib.check(config)
        create(config)  # checks the method's fields; makes no array
    else:
        assert not overrides


def check_flags(name: str, values: dict[str, str]) -> None:
    """The flags of a command occur in its source."""
    path = ROOT / "maskcl_jax" / name.replace(".", "/")
    sources = [path / "__main__.py" if path.is_dir() else path.with_suffix(".py")] if name else []
    sources += [ROOT / "maskcl_jax/cli.py", ROOT / "maskcl_jax/training/distributed.py"]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    for flag in values:
        assert re.search(rf'"(--)?{flag}"', text) or re.search(rf'"{flag.removeprefix("no")}"', text), (name, flag)


def check_evaluation(values: dict[str, str], overrides: dict[str, str]) -> None:
    """A protocol, its recipe and its fields, for a run of a ViT."""
    if values["protocol"] != "table":
        fields = tuple(f"{field}={value}" for field, value in overrides.items())
        run_config = config_lib.load("mae", "embedded")
        assert settings.create(values["protocol"], run_config, data=values.get("data", ""), overrides=fields)


def check_script(path: pathlib.Path, words: list[str]) -> None:
    """A script that is there, with flags that it names."""
    folder = "\n".join(file.read_text() for file in path.parent.glob("arguments.sh"))
    text = path.read_text(encoding="utf-8") + folder
    for word in words:
        if word.startswith("--"):
            flag = word.removeprefix("--").partition("=")[0]
            assert flag in text or flag.replace("-", "_") in text, (path, flag)


def check_extras(words: list[str]) -> None:
    """Extras of the package that setup.py has."""
    extras = re.search(r"^EXTRAS = (\{.*?^\})", (ROOT / "setup.py").read_text(encoding="utf-8"), re.M | re.S)[1]
    for word in words:
        if match := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(match[1].split(",")) <= set(ast.literal_eval(extras)), word


def execute_by_name(block, words):
    """What `tests/campaigns/commands.py` would execute, without the things that stand for placeholders."""
    if campaign.kind_of(block, words) not in ("others", "marked"):
        return campaign.shortened(campaign.filled(words, pathlib.Path("things")))
    return words


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_can_be_executed_by_the_campaign(block, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for words in commands(block.code):
        assert len(execute_by_name(block, words)) >= len(words)


@pytest.mark.parametrize("command", ["python -m maskcl_jax.main --config=mae:folder,path=VOLUME", "python docs/x.py"])
def test_a_command_that_the_campaign_cannot_execute_is_found(command):
    block = SHELL[0]._replace(reason=None)
    with pytest.raises(ValueError, match=r"VOLUME stands for nothing|docs/x\.py is unknown"):
        execute_by_name(block, command.split())
    assert execute_by_name(block._replace(reason="needs a cluster"), command.split()) == command.split()


def test_a_wrong_command_is_found():
    for words in ("--config=configs/mae.py --config.method.ratio=1", "--config=configs/ma.py", "--wordir=x"):
        with pytest.raises((AssertionError, ValueError)):
            check_ours("maskcl_jax.main", words.split())
    with pytest.raises(ValueError, match="unknown"):
        check_ours("maskcl_jax.evaluate", ["--workdir=RUN", "--protocol=kn"])
    with pytest.raises(AssertionError):
        check_extras([".[tests]"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_field_in_the_text_exists(page):
    known = set(settings.SHARED) | {"data", "labels"}
    for path in CONFIGS.values():
        known |= set(config_lib.flat(config_lib.load(path)))
    known |= set(config_lib.flat(config_lib.load(ROOT / "examples/simmim.py")))
    for of_recipe in recipes.PROTOCOLS.values():
        for recipe in of_recipe.values():
            known |= set(config_lib.flat(config_lib.Config(recipe)))
    groups = {field[:i] for field in known for i, letter in enumerate(field) if letter == "."}
    for field in re.findall(r"--config\.([a-z_0-9.]+)", page.read_text(encoding="utf-8")):
        assert field.rstrip(".") in known | groups, field


# --- Python ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block):
    compile(f"def page(self):\n{textwrap.indent(block.code, ' ')}", str(block), "exec")


def test_calls_of_the_interface_fit_its_signatures():
    """Names, arguments and config fields of every `mc.NAME(...)`."""
    called = []
    for block in PYTHON:
        names = {}
        for node in ast.walk(ast.parse(f"async def page(self):\n{textwrap.indent(block.code, ' ')}")):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and block.page == "docs/own_folder.md":
                names[node.targets[0].id] = ast.literal_eval(node.value)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mc":
                assert node.attr in mc.__all__, f"{block}: mc.{node.attr}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("mc."):
                check_call(node, names)
                called.append(node.func.attr)
    assert set(called) == {"pretrain", "load", "evaluate", "export"}


def check_call(node: ast.Call, names: dict[str, dict]) -> None:
    """The arguments of one call; of `pretrain` the fields too."""
    given = {}
    for keyword in node.keywords:
        value = names[keyword.value.id] if isinstance(keyword.value, ast.Name) else ast.literal_eval(keyword.value)
        given |= value if keyword.arg is None else {keyword.arg: value}
    positional = [argument.value if isinstance(argument, ast.Constant) else argument for argument in node.args]
    inspect.signature(getattr(mc, node.func.attr)).bind(*positional, **given)
    if node.func.attr == "pretrain":
        given.pop("workdir", None)
        chosen = fields.choose("embedded", given.pop("preset", "folder" if len(positional) > 1 else ""))
        config_lib.check(fields.config_of(positional[0], chosen, given))


def test_the_training_loops_of_the_page_learn(tmp_path, monkeypatch):
    """A head on frozen features, then all weights in 25 lines; ten images of noise in each of four classes."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/small", "mae")
    rng = np.random.default_rng(0)
    for number in range(40):
        file = tmp_path / f"LABELED/{number % 4}/{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        color = np.eye(4, 3)[number % 4] * 160
        Image.fromarray((color + rng.integers(0, 64, (40, 40, 3))).astype(np.uint8)).save(file)
    names = {"mc": mc}
    images, head, fine_tuning = (
        python_block("docs/python.md", word) for word in ("rglob", "optax.adam(", "class Classifier")
    )
    exec(compile(images, "docs/python.md", "exec"), names)
    exec(compile(head, "docs/python.md", "exec"), names)
    assert names["loss"] < np.log(4) - 0.05
    assert len([line for line in fine_tuning.splitlines() if line]) <= 25
    exec(compile(fine_tuning, "docs/python.md", "exec"), names)
    before, after = names["encoder"].variables["params"], names["params"]["encoder"]
    assert names["loss"] < np.log(4) / 2
    moved = jax.tree.map(lambda old, new: float(np.abs(old - new).max()), before, after)
    # Weight decay alone moves them by 1e-3.
    assert moved["patch_embed"]["kernel"] > 1e-2 and moved["blocks_0"]["attn"]["qkv"]["kernel"] > 1e-2


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"auto(?:class|function):: maskcl_jax\.(\w+)$", text, re.M)) == set(mc.__all__)


@pytest.mark.parametrize("where", ["barlow:BarlowTwins", "rotnet:RotNet"])
def test_the_methods_of_the_pages_have_a_loss(where, workspace, monkeypatch):
    monkeypatch.syspath_prepend(workspace)
    config = config_lib.load("simclr" if where.startswith("barlow") else "mae", "embedded")
    config.method.name = where
    method = create(config)
    params, state = jax.eval_shape(method.init, jax.random.key(0))
    out = jax.eval_shape(
        lambda params, state, batch: method.loss(params, batch, context_of(method, params, state)),
        params,
        state,
        batch_of(method),
    )
    assert out.loss.shape == ()
    assert jax.tree.structure(out.model_state) == jax.tree.structure(state)


def test_the_tables_of_batches_are_those_of_the_code(capsys):
    code = python_block("docs/data.md", "describe(")
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for name in ("mae", "cmae", "maskco", "saliency_masking"):
        exec(compile(code.replace('"cmae"', f'"{name}"'), "docs/data.md", "exec"), {})
        rows = capsys.readouterr().out.splitlines()[2:]
        own = [row for row in rows if not re.match(r"\| `(label|index|query|key|query_color)` ", row)]
        assert own and all(row in text for row in own), [row for row in own if row not in text]


def test_the_tutorial_is_the_example():
    """Its blocks one after the other are the file; a block may lie at the left margin."""
    example = (ROOT / "examples/simmim.py").read_text(encoding="utf-8")
    rest = [line for line in example.splitlines() if line.strip()]
    for block in (block for block in PYTHON if block.page == "docs/tutorial_simmim.md"):
        lines = [line for line in textwrap.dedent(block.code).splitlines() if line.strip()]
        part, rest = rest[: len(lines)], rest[len(lines) :]
        assert lines == textwrap.dedent("\n".join(part)).splitlines(), block
    assert not rest


# --- What scripts write ---------------------------------------------------------------------------------------------
def test_the_tables_of_options_are_those_of_the_configs():
    options = script("options")
    named = set()
    for page in options.pages():
        text = page.read_text(encoding="utf-8")
        named |= set(re.findall(r"<!-- options of (\w+) -->", text))
        assert options.page_with_tables(text) == text, f"{page.name}: run python docs/options.py"
    assert named == set(CONFIGS)


def test_every_method_has_a_page_with_its_figure():
    text = "\n".join(page.read_text(encoding="utf-8") for page in script("options").pages())
    figures = {path.stem for path in (ROOT / "docs/figures").glob("*.png")}
    assert figures == set(script("figures").FIGURES)
    for name in METHODS:
        assert f"configs/{name}.py" in text, name
    for path in (ROOT / "docs/figures").iterdir():
        assert path.stat().st_size < 100_000
    everywhere = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    assert all(f"figures/{name}.png" in everywhere for name in figures)


# The others take as long again.
@pytest.mark.parametrize("name", ["mae", "ccmim", "cmae", "macrl", "maskco", "saliency_masking"])
def test_figures_are_drawn_by_the_code(name):
    drawn = Image.open(io.BytesIO(script("figures").figure(name))).convert("RGB")
    kept = Image.open(ROOT / f"docs/figures/{name}.png").convert("RGB")
    assert drawn.size == kept.size
    difference = np.abs(np.asarray(drawn, np.float32) - np.asarray(kept, np.float32)).mean(axis=2)
    # Blocks of a patch's size: another mask, fill or crop differs by 20 and more in some; the palette by 7 at most.
    rows, columns = (length // 16 for length in difference.shape)
    blocks = difference[: 16 * rows, : 16 * columns].reshape(rows, 16, columns, 16)
    assert blocks.mean(axis=(1, 3)).max() < 10


# --- Links and facts ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = prose(page.read_text(encoding="utf-8"))
    for target, anchor in LINK.findall(text):
        file = (page.parent / target).resolve() if target else page
        assert file.is_file(), f"{target} is no file"  # the build cannot link to a folder
        if anchor:
            assert anchor[1:] in anchors(file), f"{target}{anchor} is not there"


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"(?:root|file): (\S+)", (ROOT / "docs/_toc.yml").read_text()))
    assert listed == {str(page.relative_to(ROOT / "docs"))[:-3] for page in (ROOT / "docs").rglob("*.md")}


def test_the_readme_is_short_and_has_a_picture_and_a_plot():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert [pathlib.Path(name).suffix for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)] == [".png", ".svg"]


def test_versions_agree():
    (version,) = re.findall(r'^VERSION = "(.*)"', (ROOT / "setup.py").read_text(), re.M)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
