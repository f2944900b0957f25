"""The page of a report: what it says, that it holds all it shows, and that it works in a browser."""

import html.parser
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers.processes import environment
from helpers.reports import looked, write_embeddings, write_example, write_pages
from helpers.tiny import tiny
from helpers.untrained import write_run

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import settings
from maskcl_jax.evaluate.encoder import default_feature, open_encoder
from maskcl_jax.export import export
from maskcl_jax.report import commands, embed, findings, maps, page, record
from maskcl_jax.report import look as look_lib
from maskcl_jax.training import visualize
from maskcl_jax.training.run import restore_run

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its name has a space and a bracket, as a folder may."""
    return write_example(tmp_path_factory.mktemp("runs") / "a <run>")


@pytest.fixture(scope="module")
def look(run):
    return looked(run)


@pytest.fixture(scope="module")
def pages(run, look, tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"), run, look)


class Tags(html.parser.HTMLParser):
    """Collects what a page refers to, and whether its elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("img", "meta", "input", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["one", "three"])
def test_a_page_holds_all_it_shows(pages, name):
    text = (pages / f"{name}.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert len(tags.ids) == len(set(tags.ids))
    anchors = {reference[1:] for reference in tags.references if reference.startswith("#")}
    assert anchors <= set(tags.ids)
    assert all(reference.startswith(("data:image/", "#")) for reference in tags.references)
    assert len(text) < 1_000_000
    assert "a <run>" not in text.replace("a &lt;run&gt;", "").replace("a \\u003crun\\u003e", "")


def test_a_page_says_what_ran(pages):
    text = (pages / "one.html").read_text()
    for words in ("30.0 %", "20.0 % untrained", "from 3", "2.5% waiting for data", "50.00 % (40.00-60.00)"):
        assert words in text
    assert "step <b>7</b>" in text
    assert "<li>importance</li>" in text


def test_several_runs_show_where_their_configs_differ(pages):
    table = (pages / "three.html").read_text().split('id="config"')[1].split("</table>")[0]
    assert re.findall(r"<code>(.*?)</code>", table) == ["seed"]
    assert re.findall(r"<td>(.*?)</td>", table) == ["0", "5", "0"]


def test_the_commands_work_as_they_are_printed(run, look, tmp_path):
    copy = tmp_path / "my run"
    shutil.copytree(run, copy)
    ran = []
    for _, command in commands.commands(record.read(str(copy), "my run"), look):
        words = shlex.split(command)
        module = words[2] if words[0] == "python" else words[0]
        values = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
        if module == "maskcl_jax.export":
            export(values["workdir"], values["format"], values["out"], check=False)
            assert (copy / values["format"] / "README.md").exists()
        if module == "maskcl_jax.evaluate":
            overrides = tuple(word.removeprefix("--config.") for word in words if word.startswith("--config."))
            assert settings.create(values["protocol"], tiny("ccmim"), overrides=overrides)
            assert pathlib.Path(values["workdir"]) == copy
        ran.append((module, values.get("protocol") or values.get("format")))
    assert ran == [
        ("maskcl_jax.evaluate", "all"),
        ("maskcl_jax.evaluate", "finetune"),
        ("maskcl_jax.evaluate", "features"),
        ("maskcl_jax.export", "timm"),
        ("maskcl_jax.export", "hf"),
        ("tensorboard", None),
    ]
    assert [purpose for purpose, _ in commands.commands(record.read(str(copy), ""), look)][3:] == [
        "Look at all scalars"
    ]
    for name, origin in (("a", {"step": 3}), ("b", {"network": "random"}), ("c", {})):
        assert "Embeddings of every image as a file" in dict(commands.commands(record.read(str(copy), ""), look))
        write_embeddings(copy, name, **origin)
    (copy / "evaluate" / "features-step7-damaged.npz").touch()
    done = [{"protocol": name, "step": 7, "network": "online"} for name in ("knn", "logistic", "lowshot", "finetune")]
    again = ["Measure it: k-NN, logistic regression, few labels", "Fine-tune it"]
    for other, purposes in (({}, []), ({"step": 3}, again), ({"network": "random"}, again)):
        evaluated = record.read(str(copy), "")._replace(evaluations=[content | other for content in done])
        assert [purpose for purpose, _ in commands.commands(evaluated, look)] == [*purposes, "Look at all scalars"]


def test_tensorboard_is_offered_where_the_run_wrote_for_it(run, look, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for offered in (True, False):
        asked = commands.commands(record.read(str(copy), ""), look)
        assert any(command.startswith("tensorboard") for _, command in asked) == offered
        for file in copy.glob("events.out.tfevents.*"):
            file.unlink()


def test_exports_are_named_as_their_libraries(run, look):
    purposes = [purpose for purpose, _ in commands.commands(record.read(str(run), ""), look)]
    assert {"Use it in timm", "Use it in transformers (Hugging Face)"} <= set(purposes)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    """A run on a few images without labels, which has embeddings and no figure."""
    folder, images = tmp_path_factory.mktemp("unlabeled"), tmp_path_factory.mktemp("images")
    for i in range(12):
        visualize.save_png(images / f"{i:02d}.png", RNG.integers(0, 256, (32, 32, 3), np.uint8))
    write_run(folder, "ccmim", **{"data.source": "folder", "data.path": str(images)})
    write_embeddings(folder, "0a")
    return folder


def test_a_page_without_labels_compares_with_the_untrained_encoder(unlabeled):
    seen, of_run = look_lib.look(str(unlabeled)), record.read(str(unlabeled), "run")
    restored = restore_run(str(unlabeled))
    random = open_encoder(restored, network="random", image_size=restored.config.data.image_size)
    values = np.asarray(random.features(random.variables, seen.pool.pixels, default_feature(restored)))
    _, similarity = embed.neighbors(*[seen.pool._replace(features=values)] * 2, seen.queries)
    eigenvalues = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(seen.initial.rank, eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-3)
    np.testing.assert_allclose(seen.initial.similarity[:, 0], similarity[:, 0], atol=1e-3)
    assert seen.initial.rank != pytest.approx(seen.rank, rel=1e-2)
    text = page.render(page.context([of_run], [seen], seen.left_out, quick=False, out="x.html"))
    assert f"{seen.initial.rank:.1f} untrained, of 32 dimensions" in text
    assert text.count('<div class="row initial">') == len(seen.queries)
    assert "What this page shows: all 12 training images (no images are held out)." in text
    assert "No evaluation with figures yet" in text
    assert "train images, network online, step 7 in <code>" in text and "features-step7-0a.npz</code>" in text
    checked, not_checked = text.split("No warnings. Checked: ")[1].split("</p>")[0].split("Not checked: ")
    assert "collapse" in checked and "k-NN" not in checked
    assert "k-NN against the untrained encoder (the data have no labels)" in not_checked
    assert "k-NN against raw pixels (the data have no labels)" in not_checked


def test_a_page_lists_the_checks_that_were_made(run, look):
    of_run = record.read(str(run), "run")
    problems = {what: problem for what, problem in findings.checks(of_run, look).items() if problem}
    assert problems == {"the loss": "the log has 3 of the 10 rows that this needs"}
    long = of_run._replace(curves={"loss": [(i, 1.0) for i in range(10)]})
    assert not any(findings.checks(long, look).values())
    quick = look._replace(accuracy={"this encoder": look.accuracy["this encoder"]})
    assert findings.checks(long, quick)["k-NN against the untrained encoder"] == "left out of this page"
    bare = findings.checks(of_run._replace(curves={}, summary={}), None)
    assert all(bare.values())


def test_a_part_of_the_images_is_said(look):
    counts = types.SimpleNamespace(num_examples=lambda split: {"train": 300, "test": len(look.held_out.where)}[split])
    train = look.pool._replace(where=np.arange(96))
    assert look_lib.shown_of(counts, "train", train, train) == "96 of the 300 training images (no images are held out)"
    count = len(look.held_out.where)
    words = f"all {count} held-out images and 96 of the 300 training images"
    assert look_lib.shown_of(counts, "test", look.held_out, train) == words


def test_a_look_compares_the_encoder_with_raw_pixels(look):
    assert look.split == "test"
    assert list(look.accuracy) == ["this encoder", "untrained", "raw pixels"]
    assert {entry["n_test"] for entry in look.accuracy.values()} == {len(look.held_out.labels)}
    assert look.attention["image"].shape == look.attention["last block"].shape == (len(look.queries), 32, 32, 3)
    assert all(points.min() >= 0 and points.max() <= 1 for points in look.maps.values())


def test_a_look_has_the_map_of_umap_where_it_is_installed(look):
    points = look.held_out.features[:, ::-1][:, :2]
    np.testing.assert_array_equal(look.maps["UMAP"], maps.unit_square(points))
    assert look.left_out == []


def test_findings(run, look):
    of_run = record.read(str(run), "run")
    sound = look._replace(total=7, problem="", rank=5.0, shortened_warmup="", accuracy={})
    assert findings.findings(of_run, sound) == []
    rising = [(i, float(i)) for i in range(20)]
    sick = of_run._replace(
        not_finite={"loss": 2},
        curves={"loss": rising, "knn_accuracy": [(0, 50.0), (7, 40.0)]},
        summary={"skipped images": "3 could not be read; the log names them"},
    )
    mine = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n_test": 50}
    seen = sound._replace(
        total=100,
        rank=1.01,
        shortened_warmup="warning: it is short",
        accuracy={"this encoder": mine, "raw pixels": mine | {"accuracy": 0.9, "low": 0.7}},
    )
    found = findings.findings(sick, seen)
    words = [
        "not finite in 2 rows",
        "did not fall: 0.5 at the start, 18.5",
        "below that of the untrained",
        "3 could not",
    ]
    words += ["not finished: step 19 of 100", "Collapse", "it is short", "raw pixels is better: 90.0 % against 50.0 %"]
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))
    assert found[-1].endswith("on 50 held-out images.")
    close = seen._replace(accuracy={"this encoder": mine, "untrained": mine | {"accuracy": 0.55, "low": 0.45}})
    assert findings.findings(sick, close)[-1].endswith("on 50 held-out images, with intervals that overlap.")


def test_what_cannot_be_read_is_one_line(run, tmp_path):
    with pytest.raises(UserError, match=r"config.json cannot be read .* is this the folder of a run\?"):
        page.write([str(tmp_path)], tmp_path / "x.html")
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(UserError, match="without a metric or a checkpoint: train it first"):
        page.write([str(tmp_path)], tmp_path / "x.html")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"--out=/dev/null/x.html cannot be written"):
        page.write([str(tmp_path)], "/dev/null/x.html")
    report = page.write([str(tmp_path)], tmp_path / "new" / "x.html")
    assert re.fullmatch(r"everything that needs the encoder and the data: .* holds no checkpoint.*", report.left_out[0])
    assert "python -m maskcl_jax.main --workdir=" in report.path.read_text()


def test_the_end_of_a_run_writes_its_page_and_never_fails(run, tmp_path, monkeypatch):
    config = tiny("ccmim")
    assert page.after_training(config, str(tmp_path)) == ""
    config.log.report = True
    line = page.after_training(config, str(tmp_path))
    assert line.startswith("report: not written (UserError: ") and "\n" not in line
    monkeypatch.setattr(look_lib, "look", lambda workdir, *, quick: 1 / 0)
    assert page.after_training(config, str(run)) == "report: not written (ZeroDivisionError: division by zero)"
    monkeypatch.setattr(page, "QUICK_BYTES", 10)
    line = page.after_training(config, str(run))
    assert line.startswith(f"report: {run}/report.html (") and "left out: everything that needs the encoder" in line
    assert "The whole page: <code>python -m maskcl_jax.report &#39;" in (run / "report.html").read_text()


# The command thrice, in one process: for a run, for two, and with a file that is named.
REPORT = """
import sys
from absl import flags
from maskcl_jax.report import __main__ as command
for words in (["a run"], ["a run", "other"], ["a run", "--out=new/page.html"]):
    command.main(flags.FLAGS(["report", *words]))
    flags.FLAGS.unparse_flags()
"""


def test_the_command_writes_into_the_run_or_for_several_here(tmp_path):
    for name in ("a run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config_lib.flat(tiny("ccmim")), default=list))
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    done = subprocess.run(
        [sys.executable, "-c", REPORT], cwd=tmp_path, env=environment(1), capture_output=True, text=True, check=True
    )
    written = ["a run/report.html", "report.html", "new/page.html"]
    lines = done.stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [f"report: {path}" for path in written]
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")} == set(written)
    assert "2 runs side by side" in (tmp_path / "report.html").read_text()


def test_a_run_that_was_finished_before_keeps_its_page(run, look, tmp_path, monkeypatch):
    monkeypatch.setattr(look_lib, "look", lambda workdir, *, quick: look)
    config, folder = tiny("ccmim", **{"log.report": True}), tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "report.html").write_text("a whole page")
    assert page.after_training(config, str(folder)).endswith("(left as it was: nothing was trained since)")
    assert (folder / "report.html").read_text() == "a whole page"
    os.utime(folder / "report.html", (0, 0))  # before the closing table: steps were trained since
    assert "MB" in page.after_training(config, str(folder))
    assert "</html>" in (folder / "report.html").read_text()
