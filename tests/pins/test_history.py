"""Would a release have been served on its day, before anybody pinned it? Each pinned release is asked.

docs/releases.md has the counts. `history` replays them from the wheels, by the trial's own checks of sources.
"""

from __future__ import annotations

import ast
import hashlib
import zipfile

import history
import pytest
from releases import PROVE_ALL, TABLE, TARGETS, stock_file

from Code.trial import arguments
from selfaug_patcher import families, pins
from selfaug_patcher.maintain import changes, wheels

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in stock peft

QWEN2, LORA = families.MODELS[0], families.LAYER
CLASS = """
class {name}(Base):
    def forward(self, {arguments}):
        return None
"""
FORWARD = "input_ids, past_key_values: Optional[Cache] = None, labels=None, **kwargs"
LAYER = """
class LoraLayer(BaseTunerLayer):
    pass

class Linear(nn.Module, LoraLayer):
    def forward(self, x):
        if self.{asked}:
            return self.base_layer(x)
        return self.lora_A(x)
"""


@pytest.fixture(scope="module")
def replayed(all_wheels):
    """By target, the outcome of each pinned release."""
    first = {pin.stock_sha256: pin for pin in reversed(TABLE.pins)}.values()
    missing = [pin.version for pin in first if stock_file(pin) is None]
    missing += [pin.version for pin in TABLE.of(LORA.name) if wheels.find("peft", pin.version) is None]
    if missing:
        assert not PROVE_ALL, f"no wheel of {missing}"
        pytest.skip(f"no wheel in the cache of {len(missing)} releases: history is not replayed")
    return history.outcomes(TABLE, stock_file)


@pytest.mark.xdist_group("history")
def test_the_page_has_the_counts_and_names_what_was_stopped_and_why(replayed):
    written = history.block(history.PAGE.read_text(encoding="utf-8"))
    assert written == history.text(replayed), "python tests/pins/history.py writes it anew"


@pytest.mark.xdist_group("history")
def test_each_release_but_the_first_has_an_outcome(replayed):
    for target in (QWEN2, LORA):
        assert [row.pin for row in replayed[target.name]] == list(TABLE.of(target.name)[1:])


@pytest.mark.xdist_group("history")
@pytest.mark.parametrize("target", [QWEN2], ids=lambda target: target.family)
def test_the_releases_that_were_stopped_are_those_with_a_new_argument_and_the_argument_is_named(target, replayed):
    """The arguments, read here from the text of the functions, without the checks of the trial."""
    known: set[str] = set()
    brought: dict[str, set[str]] = {}
    for pin in TABLE.of(target.name):
        functions = [name for name in changes.names(target) if name.endswith(".forward")]
        found = {name for function in functions for name in arguments_of(changes.source(stock_file(pin), function))}
        brought[pin.version] = found - known
        known |= found
    stopped = {row.pin.version: row.stopped for row in replayed[target.name] if row.stopped}
    del brought[TABLE.of(target.name)[0].version]
    assert set(stopped) == {version for version, names in brought.items() if names}
    for version, text in stopped.items():
        assert all(name in text for name in brought[version])


def arguments_of(function: str) -> set[str]:
    (node,) = ast.parse("class C:\n" + function).body[0].body
    return {argument.arg for argument in node.args.args} - {"self"}


@pytest.mark.xdist_group("history")
def test_with_the_arguments_that_are_known_today_no_release_is_stopped(replayed):
    today = arguments.PLAIN | arguments.STOCK_LOSS
    for pin in (row.pin for rows in replayed.values() for row in rows if not row.known and row.pin.target != LORA.name):
        assert history.unknown_arguments(TARGETS[pin.target], stock_file(pin), today) == []


def pretended(target, versions: dict[str, str], root) -> pins.PinTable:
    """A table of these releases; what their results were is not asked."""
    rows = [pins.Pin(target.name, version, sha256(text), sha256("#" + text)) for version, text in versions.items()]
    return pins.PinTable(tuple(rows), root, TABLE.seams)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stopped(target, versions: dict[str, str], root, layers=lambda pin: []) -> list[str]:
    table = pretended(target, versions, root)
    return [row.stopped for row in history.replay(table, target, lambda pin: versions[pin.version].encode(), layers)]


def model(head: str = FORWARD, decoder: str = FORWARD) -> str:
    text = "from .configuration_qwen2 import Qwen2Config\n" + CLASS.format(name="Qwen2Model", arguments=decoder)
    return text + CLASS.format(name="Qwen2ForCausalLM", arguments=head)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(model() + "#", "", id="another comment"),
        pytest.param(model(FORWARD.replace("labels", "labels: Labels")), "", id="another type hint"),
        pytest.param(
            model(FORWARD.replace("labels", "tau=1.0, labels")),
            "arguments of forward: tau, which SelfAug does not know",
            id="a new argument",
        ),
        pytest.param(
            model(FORWARD.replace("**", "*, tau=1.0, **")),
            "arguments of forward: tau, which SelfAug does not know",
            id="a new argument by name only",
        ),
        pytest.param(
            model(decoder=FORWARD.replace("past_key_values", "cache")),
            "arguments of the decoder's forward: cache, which SelfAug does not know",
            id="a renamed argument of the decoder",
        ),
        pytest.param(
            model(FORWARD.replace("labels=", "labels: Optional[Cache] = ")),
            "cache of forward: past_key_values, labels",
            id="two caches",
        ),
        pytest.param(
            model().replace("class Qwen2For", "class Qwen2_5For"),
            "SelfAug's lines have no place in transformers/models/qwen2/modeling_qwen2.py: none",
            id="a renamed class",
        ),
    ],
)
def test_a_release_is_stopped_by_what_older_releases_do_not_have(text, why, tmp_path):
    assert stopped(QWEN2, {"1": model(), "2": text}, tmp_path) == [why]


def test_an_argument_stops_one_release_and_is_known_from_then_on(tmp_path):
    new = model(FORWARD.replace("labels", "tau=1.0, labels"))
    versions = {"1": model(), "2": new, "3": new + "#", "4": model()}
    assert [bool(why) for why in stopped(QWEN2, versions, tmp_path)] == [True, False, False]


def test_a_peft_whose_layer_does_not_ask_is_stopped_and_the_layer_named(tmp_path, monkeypatch):
    """The installed peft is not asked: a stand-in with the same module names is."""
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path))
    versions = {"1": LAYER.format(asked="disable_adapters"), "2": LAYER.format(asked="_disable_adapters")}
    for version, text in versions.items():
        with zipfile.ZipFile(tmp_path / f"peft-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr("peft/tuners/lora/__init__.py", "raise RuntimeError('peft is imported')")
            archive.writestr("peft/tuners/lora/layer.py", text)
            archive.writestr("peft/tuners/lora/bnb.py", versions["1"])
    assert [history.deaf_layers(version) for version in versions] == [[], ["layer.Linear"]]
    told = stopped(LORA, versions, tmp_path, lambda pin: history.deaf_layers(pin.version))
    assert told == ["layer.Linear does not ask `disable_adapters`"]
