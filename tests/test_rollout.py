from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from model.architecture import EcapaDims
from model.bundle import BundleCard, BundleError, Label
from model.bundle_store import add_bundle, find_bundle, stored_bundles
from model.engine import Engine
from model.untrained import write_untrained_bundle
from stream.alarms import AlarmRules
from stream.detect import judge_again, predict
from stream.model_board import Answer, Order, Outcome
from stream.model_fit import Misfit, check_fit, check_shadow_fit
from stream.model_rollout import Loader, starting_model
from stream.records import Window
from stream.shadow_comparison import Comparison, decode_comparison, encode_comparison, summed
from tests.alarm_windows import window

TINY = EcapaDims(channels=16, mfa_channels=24, attention=8, se_bottleneck=8, embedding=8)


def write(folder: Path, seed: int = 0, **changes: object) -> BundleCard:
    return write_untrained_bundle(
        folder, network=TINY, seed=seed, **({"window_samples": 4096, "hop_samples": 2048} | changes)
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> BundleCard:
    return write(tmp_path_factory.mktemp("bundles") / "one")


def changed(card: BundleCard, **changes: object) -> BundleCard:
    return msgspec.structs.replace(card, version="b" * 16, **changes)


class TestFit:
    def test_other_weights_name_metrics_and_order_of_labels_fit(self, card: BundleCard) -> None:
        other = changed(card, name="other", metrics={"data": "x"}, labels=tuple(reversed(card.labels)))
        check_fit(card, other)
        check_shadow_fit(card, other)

    def test_another_set_of_labels_is_refused_naming_them(self, card: BundleCard) -> None:
        other = changed(card, labels=(*card.labels[:-1], Label("crack", "fault")))
        with pytest.raises(Misfit, match=r"lacks the labels drop; its labels crack are new"):
            check_fit(card, other)
        check_shadow_fit(card, other)

    def test_another_role_is_refused(self, card: BundleCard) -> None:
        labels = tuple(Label(one.name, "background" if one.name == "knock" else one.role) for one in card.labels)
        with pytest.raises(Misfit, match="knock is background in it, and fault in the running one"):
            check_fit(card, changed(card, labels=labels))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"rate_hz": 16_000.0}, "its rate is 16000 Hz, the stream's 500000 Hz"),
            ({"rate_is_nominal": True}, "its rate is nominal, the stream's 500000 Hz"),
            ({"window_samples": 8192}, "its window is 8192 samples, the stream's 4096 samples"),
            ({"hop_samples": 4096}, "its hop is 4096 samples, the stream's 2048 samples"),
        ],
    )
    def test_windows_cut_otherwise_are_refused_live_and_in_the_shadow(
        self, card: BundleCard, changes: dict[str, object], told: str
    ) -> None:
        for check in (check_fit, check_shadow_fit):
            with pytest.raises(Misfit, match=told):
                check(card, changed(card, **changes))

    def test_a_nominal_rate_is_a_name_only(self, card: BundleCard) -> None:
        nominal = msgspec.structs.replace(card, rate_is_nominal=True)
        check_fit(nominal, changed(nominal, rate_hz=16_000.0))

    def test_everything_that_differs_is_told_at_once_with_both_versions_and_the_way_out(self, card: BundleCard) -> None:
        with pytest.raises(Misfit, match=rf"b{{16}}.*{card.version}.*window.*hop.*model\.bundle"):
            check_fit(card, changed(card, window_samples=8192, hop_samples=1024))


class TestStore:
    def test_a_bundle_is_copied_under_its_version_and_found_there(self, tmp_path: Path) -> None:
        card = write(tmp_path / "mine")
        store = tmp_path / "store"
        assert add_bundle(store, tmp_path / "mine") == card
        assert add_bundle(store, tmp_path / "mine") == card, "once more changes nothing"
        [stored] = stored_bundles(store)
        assert stored.card == card
        assert stored.folder == store / card.version
        assert find_bundle(card.version, [tmp_path / "nowhere", store / card.version]) == store / card.version
        assert [path.name for path in store.iterdir()] == [card.version], "nothing half done is left"

    def test_a_damaged_bundle_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        write(tmp_path / "mine")
        weights = tmp_path / "mine" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        with pytest.raises(BundleError, match=str(tmp_path / "mine")):
            add_bundle(tmp_path / "store", tmp_path / "mine")
        assert stored_bundles(tmp_path / "store") == []

    def test_a_damaged_copy_in_the_store_is_replaced(self, tmp_path: Path) -> None:
        card = write(tmp_path / "mine")
        copy = tmp_path / "store" / card.version
        add_bundle(tmp_path / "store", tmp_path / "mine")
        (copy / "model.safetensors").write_bytes(b"")
        add_bundle(tmp_path / "store", tmp_path / "mine")
        Engine(copy)

    def test_what_is_not_there_is_told_with_every_place_that_was_looked_at(self, tmp_path: Path) -> None:
        card = write(tmp_path / "mine")
        with pytest.raises(BundleError, match=rf"nothing at .*nowhere; .*mine holds {card.version}.*aewatch model add"):
            find_bundle("f" * 16, [tmp_path / "nowhere", tmp_path / "mine"])

    def test_a_folder_of_the_store_under_another_version_is_told_of(self, tmp_path: Path) -> None:
        write(tmp_path / "store" / ("0" * 16))
        (tmp_path / "store" / ("1" * 16)).mkdir()
        assert [stored.card for stored in stored_bundles(tmp_path / "store")] == [None, None]


class TestStart:
    @pytest.fixture
    def loader(self, tmp_path: Path) -> Loader:
        return Loader(
            places=(),
            store=tmp_path / "store",
            engine=lambda folder: Engine(folder, threads=1),
            rules=lambda card: AlarmRules.for_labels(card.roles),
        )

    def order(self, card: BundleCard, path: Path) -> Order:
        return Order(7, card.version, card.name, str(path), "ann@host", 0)

    def test_without_an_order_it_is_the_settings_model(self, tmp_path: Path, loader: Loader) -> None:
        own = write(tmp_path / "own")
        model, answer = starting_model(None, tmp_path / "own", loader)
        assert model.engine.card == own
        assert answer is None

    def test_the_model_that_was_ordered_goes_before_that_of_the_settings(self, tmp_path: Path, loader: Loader) -> None:
        write(tmp_path / "own")
        new = write(tmp_path / "new", seed=1)
        model, answer = starting_model(self.order(new, tmp_path / "new"), tmp_path / "own", loader)
        assert model.engine.card == new
        assert answer == Answer(7, Outcome.STARTED, new.version)

    def test_the_own_store_goes_before_the_path_of_the_one_who_ordered(self, tmp_path: Path, loader: Loader) -> None:
        write(tmp_path / "own")
        new = write(tmp_path / "new", seed=1)
        add_bundle(loader.store, tmp_path / "new")
        model, _ = starting_model(self.order(new, tmp_path / "new"), tmp_path / "own", loader)
        assert model.folder == loader.store / new.version

    def test_a_misfit_is_refused_and_the_settings_model_begins(
        self, tmp_path: Path, loader: Loader, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = write(tmp_path / "own")
        new = write(tmp_path / "new", window_samples=8192)
        model, answer = starting_model(self.order(new, tmp_path / "new"), tmp_path / "own", loader)
        assert model.engine.card == own
        assert answer is not None
        assert answer.outcome == Outcome.REFUSED
        assert "window is 8192" in answer.reason
        assert "DOES NOT RUN HERE" in caplog.text

    def test_one_that_is_not_on_this_host_is_refused(self, tmp_path: Path, loader: Loader) -> None:
        own = write(tmp_path / "own")
        elsewhere = Order(7, "f" * 16, "far", "/nowhere/far", "ann@host", 0)
        model, answer = starting_model(elsewhere, tmp_path / "own", loader)
        assert model.engine.card == own
        assert answer is not None
        assert "/nowhere/far" in answer.reason


class TestComparison:
    def test_it_counts_label_pairs_differences_and_unknowns(self) -> None:
        comparison = Comparison("a", "b")
        live = [window(0, knock=0.9), window(1, knock=0.8), window(2)]
        shadow = [window(0, knock=0.7), window(1, friction=1.0, unknown=True), window(2)]
        comparison.add(live, shadow)
        assert comparison.pairs == {"knock": {"knock": 1, "friction": 1}, "background": {"background": 1}}
        assert comparison.agreement == pytest.approx(2 / 3)
        # background and knock each 0.2 apart; background 0.2, knock 0.8, friction 1.0 apart; nothing.
        assert comparison.mean_difference == pytest.approx((0.4 / 5 + 2.0 / 5 + 0) / 3)
        assert (comparison.live_unknown, comparison.shadow_unknown) == (0, 1)

    def test_only_labels_that_both_have_are_compared(self) -> None:
        comparison = Comparison("a", "b")
        other = msgspec.structs.replace(window(0), probabilities={"background": 0.5, "crack": 0.5})
        comparison.add([window(0)], [other])
        assert comparison.mean_difference == pytest.approx(0.5)

    def test_workers_are_summed_by_pair_of_models_and_the_sum_survives_the_wire(self) -> None:
        one, two, other = Comparison("a", "b"), Comparison("a", "b"), Comparison("a", "c")
        for comparison in (one, two, other):
            comparison.add([window(0, knock=0.9)], [window(0, knock=0.9)])
        sums = summed(decode_comparison(encode_comparison(each)) for each in (one, two, other))
        assert [(each.shadow, each.windows, each.pairs) for each in sums] == [
            ("b", 2, {"knock": {"knock": 2}}),
            ("c", 1, {"knock": {"knock": 1}}),
        ]
        assert one.windows == 1, "summing changes nothing"


def test_a_second_judgement_is_what_the_other_model_alone_would_say(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", seed=1)
    one, two = Engine(tmp_path / "one", threads=1), Engine(tmp_path / "two", threads=1)
    samples = np.random.default_rng(0).normal(0, 1000, 4096).astype(np.int16)
    first = Window(
        sensor="s",
        epoch_ns=0,
        start_sample=0,
        source_count=4096,
        source_rate_hz=one.card.window_rate_hz,
        time_ns=0,
        rate_hz=one.card.window_rate_hz,
        samples=samples,
    )
    windows = [first, replace(first, start_sample=2048, samples=samples[::-1].copy())]
    assert judge_again(two, windows, predict(one, windows, 40.0)) == predict(two, windows, 40.0)


def test_an_engine_is_warmed_for_the_lengths_that_another_has_met(tmp_path: Path) -> None:
    write(tmp_path / "one")
    old, new = Engine(tmp_path / "one", threads=1), Engine(tmp_path / "one", threads=1)
    old.warm_up()
    old.infer([np.zeros(700, dtype=np.int16)])
    new.warm_up(like=old)
    assert new.describe() == old.describe()


@pytest.mark.parametrize("command", [["status"], ["use", "demo"], ["shadow", "off"], ["list"]])
def test_model_commands_need_no_torch(command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AEWATCH_REDIS__URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("AEWATCH_MODEL__STORE", str(tmp_path))
    script = (
        "import json, sys\n"
        "from deploy.cli import cli\n"
        f"try: cli.main({['model', *command]!r}, prog_name='aewatch')\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not modules & {"torch", "faust", "aiokafka", "scipy"}
    if command != ["list"]:
        assert "127.0.0.1:1" in done.stderr
