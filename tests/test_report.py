# SPDX-License-Identifier: Apache-2.0
"""The JSON file against its schema, and the page: whole, escaped, the same bytes again, and in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import code_gen
import nn_quantizer
from caffe_to_cmsis_nn.plan import lowering
from caffe_to_cmsis_nn.report import facts, page
from caffe_to_cmsis_nn.store import record
from tests import tiny
from tests.support import ROOT, run, tool

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
HOSTILE = "a</script><script>alert(1)</script>$x_{\\frac$ &lt;'\"\x00\x1b[31m\u202e"


CLASSES = ["horse", "ship", "truck"]


@dataclass
class Reported:
    """A quantized network with its values, and its page if it was asked for."""

    folder: Path
    arguments: list[str]
    page: str
    values: dict[str, Any]


def quantize(folder: Path, *options: str) -> Reported:
    (folder / "names.txt").write_text("\n".join(CLASSES))
    named = ["--classes", str(folder / "names.txt")]
    arguments = [*tiny.write(folder), *named, "--json", str(folder / "r.json"), *options]
    assert nn_quantizer.main(arguments) == 0
    written = (folder / "r.html").read_text() if "--report" in options else ""
    return Reported(folder, arguments, written, json.loads((folder / "r.json").read_text()))


MIXED = "device --api s8 --weight_bits mixed --loss 100"


@pytest.fixture(
    scope="module", params=["device", *(pytest.param(one, marks=pytest.mark.slow) for one in ("caffe", MIXED))]
)
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported")
    return quantize(folder, "--report", str(folder / "r.html"), "--objective", *request.param.split())


def test_the_schema_holds(reported: Reported) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(reported.values, SCHEMA)


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("command"),
        lambda v: v.update(extra=1),
        lambda v: v["accuracy"].update(device=101),
        lambda v: v["layers"][1]["fraction_bits"].update(weights="Q0.7"),
        lambda v: v["trials"][0].update(tensor="input"),
        lambda v: v["sources"]["model"].update(sha256="0"),
    ],
)
def test_the_schema_refuses_what_it_does_not_describe(reported: Reported, damage: Callable[[Any], None]) -> None:
    values = json.loads(json.dumps(reported.values))
    damage(values)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_flash_against_loss(reported: Reported) -> None:
    """Each step saves bytes; the last is what code takes."""
    steps, bits = reported.values["flash_and_loss"], [layer["weight_bits"] for layer in reported.values["layers"]]
    assert ("Flash against loss" in reported.page) == ("mixed" in reported.arguments) == bool(steps)
    assert reported.values["weight_bits"] == ("mixed" if steps else "8")
    assert set(bits) == {None, 4 if steps else 8}
    if steps:
        assert [step["kept"] for step in steps] == [True] * 3
        assert steps[0]["layer"] is None and {step["layer"] for step in steps[1:]} == {"conv1", "ip1"}
        sizes = [step["flash_bytes"] for step in steps]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] == reported.values["memory"]["flash_bytes"]
        assert steps[-1]["loss"] == pytest.approx(reported.values["accuracy"]["loss"])


def test_the_values_are_those_of_the_pickle(reported: Reported) -> None:
    values, network = reported.values, record.load(reported.folder / "net.pkl").network
    assert network and network.outcome
    assert values["accuracy"]["device"] == network.outcome.known.on_device
    assert values["accuracy"]["loss"] == pytest.approx(values["accuracy"]["float"] - values["accuracy"]["device"])
    for layer, graph_layer in zip(values["layers"], lowering.fuse(network).graph.layers):
        own = network.formats[graph_layer.name]
        assert (layer["name"], tuple(layer["shape"])) == (graph_layer.name, graph_layer.out_shape)
        assert layer["fraction_bits"]["activations"] == (own.y and own.y.fraction_bits)
        assert layer["fraction_bits"]["weights"] == (own.w and own.w.fraction_bits)
        assert layer["activations"]["sqnr"] == network.outcome.layers[layer["name"]].sqnr
    assert sum(pair["count"] for pair in values["confusion"]) == values["images"]["count"] == 100
    differing = sum(pair["count"] for pair in values["confusion"] if pair["float"] != pair["device"])
    assert len(values["changed"]) == differing
    assert values["command"].startswith("python nn_quantizer.py --model ")
    assert {trial["layer"] for trial in values["trials"]} <= {layer["name"] for layer in values["layers"]}


@pytest.mark.parametrize("options", [[], ["--api", "s8"], ["--api", "s8", "--core", "mve"]])
def test_layers_and_memory_are_those_of_the_generated_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    values = quantize(tmp_path, *options).values
    jsonschema.validate(values, SCHEMA)
    assert values["target"]["api"] == (options[1] if options else "q7")
    capsys.readouterr()
    assert code_gen.main(["--describe", str(tmp_path / "net.pkl")]) == 0
    described = capsys.readouterr().out
    sizes = values["memory"]
    assert f"flash {sizes['flash_bytes']} bytes of constants, RAM {sizes['ram_bytes']} bytes" in described
    assert code_gen.main(["--ram", "least", "--describe", str(tmp_path / "net.pkl")]) == 0
    least = capsys.readouterr().out
    assert f"RAM {sizes['by_rows']['ram_bytes']} bytes" in least
    for tensor in sizes["by_rows"]["tensors"]:
        assert re.search(rf"{tensor['name']} .* {tensor['most_rows']} x {tensor['row_bytes']} ", least)
    table = described[described.index("layer  kernel") :].splitlines()[1:]
    assert [line.split()[:2] for line in table[: len(values["layers"]) + 1]] == [
        *([layer["name"], layer["kernel"]] for layer in values["layers"]),
        [],
    ]


class Elements(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_self_contained(text: str) -> Elements:
    elements = Elements(text)
    assert not {tag for tag, _ in elements.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,", "data:,")), (tag, name)
    assert "@import" not in text and "url(http" not in text
    return elements


def test_the_page_is_whole_in_itself_and_has_everything(reported: Reported) -> None:
    elements = check_self_contained(reported.page)
    identifiers = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert {"network", "layers", "histograms", "sweep", "confusion", "changed", "memory", "reproduce"} <= {*identifiers}
    figures = [attributes for tag, attributes in elements.tags if tag == "svg" and attributes.get("role") == "img"]
    weights = sum(layer["weights"] is not None for layer in reported.values["layers"])
    own = sum(layer["own_format"] for layer in reported.values["layers"])
    sweeps = len({(trial["layer"], trial["tensor"]) for trial in reported.values["trials"]})
    others = [
        "confusion",
        "confusion with labels",
        "memory",
        "rows",
        *["flash"] * bool(reported.values["flash_and_loss"]),
    ]
    assert len(figures) == weights + own + sweeps + len(others)
    assert all(attributes["aria-label"] for attributes in figures)
    for layer in reported.values["layers"]:
        assert layer["name"] in elements.text
    assert f"{reported.values['accuracy']['device']:.2f} %" in elements.text
    assert reported.values["command"] in elements.text
    assert reported.values["full_command"] in elements.text
    for name in (
        *CLASSES,
        *reported.values["made"].values(),
        *(b["name"] for b in reported.values["memory"]["buffers"]),
    ):
        assert name in elements.text
    assert {trial["reason"] for trial in reported.values["trials"]} - {""}
    assert all(escape(trial["reason"]) in reported.page for trial in last_trials(reported.values["trials"]))


def test_every_changed_image_has_its_picture(reported: Reported) -> None:
    elements = Elements(reported.page)
    pictures = [attributes["alt"] for tag, attributes in elements.tags if tag == "img"]
    changed = reported.values["changed"][: page.MOST_PICTURES]
    assert pictures == [f"image {one['image']}" for one in changed]


def test_the_same_input_gives_the_same_bytes(reported: Reported) -> None:
    assert nn_quantizer.main(reported.arguments) == 0
    assert (reported.folder / "r.html").read_text() == reported.page
    assert json.loads((reported.folder / "r.json").read_text()) == reported.values


def _rename(values: Any, old: str, new: str) -> Any:
    if isinstance(values, dict):
        return {key: _rename(value, old, new) for key, value in values.items()}
    if isinstance(values, list):
        return [_rename(value, old, new) for value in values]
    return new if values == old else values


def hostile(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a layer, the network, and files that have the worst of names."""
    values = _rename(_rename(values, "conv1", HOSTILE), "net", HOSTILE)
    values["memory"]["buffers"][0]["name"] = HOSTILE
    values["images"]["lmdb"] = values["command"] = values["sources"]["model"]["name"] = HOSTILE
    return values


def test_names_cannot_leave_their_place(reported: Reported) -> None:
    text = page.page(hostile(reported.values), {})
    elements = check_self_contained(text)
    assert "a</script><script>alert(1)" in elements.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def last_trials(trials: list[Any]) -> list[Any]:
    """Of each format of each tensor."""
    return list({(t["layer"], t["tensor"], t["fraction_bits"]): t for t in trials if t["tensor"] != "weights"}.values())


def test_each_class_is_counted(reported: Reported) -> None:
    values = reported.values
    assert [one["name"] for one in values["per_class"]] == CLASSES
    assert sum(one["images"] for one in values["per_class"]) == values["images"]["count"]
    right = [pair["count"] for pair in values["confusion_with_labels"] if pair["label"] == pair["device"]]
    assert sum(one["device"] for one in values["per_class"]) == sum(right)
    assert 100 * sum(right) / values["images"]["count"] == pytest.approx(values["accuracy"]["device"])


def test_the_full_command_does_the_same(reported: Reported) -> None:
    short, full = (shlex.split(reported.values[name])[2:] for name in ("command", "full_command"))
    assert len(full) > len(short) + 10
    options = [nn_quantizer.parse_arguments(words) for words in (short, full)]
    assert len({str(replace(one, command="", full_command="")) for one in options}) == 1


def test_images_of_few_and_many_classes(reported: Reported) -> None:
    one = {"name": "x", "images": 7, "float": 7, "device": 0}
    for classes in (1, 300):
        pairs = {"device": classes - 1, "count": 7}
        changed = {"classes": classes, "per_class": [one] * classes, "changed": []}
        confusion = {"confusion": [{"float": 0, **pairs}], "confusion_with_labels": [{"label": 0, **pairs}]}
        values = {**reported.values, **changed, **confusion}
        check_self_contained(page.page(values, {}))


def test_connections_that_jump_over_layers_get_lanes_of_their_own() -> None:
    names = {"a": [], "b": ["a"], "c": ["b", "a"], "d": ["c", "b"], "e": ["d"], "f": ["e", "d"]}
    layers = [{"name": name, "inputs": inputs} for name, inputs in names.items()]
    edges = [(e.source, e.target, e.lane) for e in page._edges(layers)]
    assert edges == [(0, 2, 0), (1, 3, 1), (3, 5, 0)]


# --- in a browser -----------------------------------------------------------------------------------------------------

PROBE = """<script>addEventListener("load", () => {
  const box = (e) => e.getBoundingClientRect();
  const all = (what) => [...document.querySelectorAll(what)];
  const wide = all("body *").filter((e) => box(e).right > innerWidth + 1 && !e.closest(".scroll, .wide, .net .box"));
  const small = Math.min(...all("svg[role=img] text").map((e) => box(e).height));
  const scroll = document.documentElement.scrollWidth;
  parent.document.title = JSON.stringify({width: innerWidth, scroll, wide: wide.map((e) => e.tagName), small});
});</script>"""


def browse(page: Path, *options: str) -> tuple[str, str]:
    """What Chromium makes of a page, and what it has to say about it."""
    browser = tool("chromium", "chromium-browser", "google-chrome")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--disable-dev-shm-usage"]
    flags += ["--allow-file-access-from-files", f"--user-data-dir={page.parent / 'profile'}"]
    done = run(browser, *flags, *options, page.as_uri(), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize(("width", "names"), [(360, "hostile"), pytest.param(1200, "plain", marks=pytest.mark.slow)])
def test_in_a_browser(reported: Reported, tmp_path: Path, width: int, names: str) -> None:
    """No errors, nothing wider than the screen, and no text too small to read."""
    values = reported.values if names == "plain" else hostile(reported.values)
    text = page.page(values, {})
    (tmp_path / "page.html").write_text(text)
    assert browse(tmp_path / "page.html", "--dump-dom")[1] == ""

    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
        "</body>", PROBE + "</body>"
    )
    (tmp_path / "measured.html").write_text(measured)
    frame = f'<title></title><iframe src="measured.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html>{frame}")
    dom, console = browse(
        tmp_path / "frame.html", "--window-size=1300,950", "--virtual-time-budget=20000", "--dump-dom"
    )
    assert console == ""
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title, dom
    seen = json.loads(title[1].replace("&quot;", '"'))
    assert seen["width"] == width
    assert seen["scroll"] <= width and seen["wide"] == []
    assert seen["small"] >= 8


def test_it_prints(reported: Reported, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(reported.page)
    browse(tmp_path / "page.html", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 2 <= pages <= 8


def test_pictures_have_the_colours_of_their_order(reported: Reported) -> None:
    image = np.zeros((1, 3, 6, 6), np.uint8)
    image[:, 0] = 200
    logits = np.array([[1, 0]]), np.array([[0, 1]])
    told: Any = facts.QuantizerRun("", "", None, ["0", "1"], [], None, np.array([7]), image, np.array([0]), *logits)  # type: ignore[arg-type]
    for order, colour in (("rgb", (200, 0, 0)), ("bgr", (0, 0, 200))):
        (url,) = page.pictures(told, order).values()
        png = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert png.getpixel((0, 0)) == colour
