import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import speed
import speed_first
import speed_measure
import speed_networks
import torch
from speed_contenders import DIFFUSERS, OURS, PLAIN, Contender, Ours, Work, contenders
from speed_measure import Setting, at_rate, measure
from speed_report import results
from speed_timing import STAGES, StageClock, Tap, interleave, peak_flops, tapped
from torch import Tensor

from gendr_core.config import ColorMethod
from gendr_core.geometry import Extent


def setting(**given: object) -> Setting:
    values: dict[str, object] = {
        "arch": "mini",
        "size": 64,
        "passes": 1,
        "dtype": "fp32",
        "device": "cpu",
        "attention": "windows",
        "graphs": "off",
        "kernels": "torch",
        "against": None,
        "compiled": False,
        "errors": False,
        "repeat": 1,
    }
    return Setting(**(values | given))  # pyright: ignore[reportArgumentType]


class Broken(Contender):
    """Fails as a compiler does that is not there."""

    name, modules, taps, may_fail = "broken", (), (), True

    def restore(self, work: Work, color: ColorMethod = "wavelet") -> Tensor:
        """Raise what torch's compiler would."""
        del work, color
        raise RuntimeError("no compiler\nand much more")


@pytest.fixture
def fast_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 TFLOP/s, without measuring one."""
    monkeypatch.setattr(speed_measure, "peak_flops", lambda *_: 1e12)


@pytest.fixture(scope="module")
def ours() -> list[Contender]:
    return contenders("mini", "fp32", "cpu", against=None, compiled=False)


def test_both_of_ours_restore_the_same_image_and_only_one_is_folded(ours: Sequence[Contender]) -> None:
    work = setting(passes=2).work()
    plain, specialised = ours
    assert [plain.name, specialised.name] == [PLAIN, OURS]
    torch.testing.assert_close(plain.restore(work), specialised.restore(work), rtol=0.0, atol=1e-5)
    assert specialised.weight_bytes < plain.weight_bytes


def test_networks_are_the_same_every_time_and_share_nothing() -> None:
    first, second = speed_networks.networks("mini"), speed_networks.networks("mini")
    assert first.unet.negative is not None
    assert second.unet.negative is not None
    assert torch.equal(first.unet.negative, second.unet.negative)
    weights = [made.unet.network.conv_in.weight for made in (first, second)]
    assert torch.equal(*weights)
    assert weights[0].data_ptr() != weights[1].data_ptr()


def test_every_stage_is_timed_once_a_call_and_the_pipeline_is_left_as_it_was(ours: Sequence[Contender]) -> None:
    clock, before = StageClock("cpu"), [getattr(tap.owner, tap.name) for tap in ours[0].taps]
    with tapped(ours[0].taps, clock):
        ours[0].restore(setting().work())
    assert {stage: len(times) for stage, times in clock.seconds.items()} == dict.fromkeys(STAGES, 1)
    assert [getattr(tap.owner, tap.name) for tap in ours[0].taps] == before


def test_a_tap_ends_when_the_call_raises() -> None:
    class Owner:
        def stage(self) -> None:
            raise ValueError

    owner = Owner()
    with pytest.raises(ValueError), tapped([Tap(owner, "stage", "step")], StageClock("cpu")):
        owner.stage()
    assert "stage" not in vars(owner)


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def call(name: str) -> Tensor:
        turns.append(name)
        return torch.empty(0)

    interleave({name: lambda name=name: call(name) for name in "ab"}, 3, "cpu")
    assert turns == list("ababab")


@pytest.mark.usefixtures("fast_peak")
def test_figures_without_the_reference_hold_no_ratios(ours: Sequence[Contender]) -> None:
    result = measure(setting(), ours, None)
    assert (result.ratio_to_diffusers, result.memory_ratio_to_diffusers, result.error_ratio) == (None, None, None)
    assert result.floor_ms == pytest.approx(result.flops / 1e9)
    assert result.floor_distance == pytest.approx(result.ours_ms / result.floor_ms)
    slower = at_rate(result, 5e11)
    assert (slower.floor_ms, slower.peak_flops) == (pytest.approx(2.0 * result.floor_ms), 5e11)
    assert slower.floor_distance == pytest.approx(0.5 * result.floor_distance)
    assert result.contenders[OURS].activation_bytes > 4 * 3 * 64 * 64


@pytest.mark.usefixtures("fast_peak")
def test_who_cannot_take_part_is_named_with_the_reason(ours: Sequence[Contender]) -> None:
    one = setting()
    result = measure(one, [*ours, Broken()], None)
    assert result.skipped == {"broken": "no compiler"}
    page = results([(one, result)])
    assert "Skipped: broken: no compiler" in page
    assert "standard deviation" in page


@pytest.mark.usefixtures("fast_peak")
def test_ours_is_beside_the_reference_and_within_its_error() -> None:
    pytest.importorskip("diffusers")
    one = setting(dtype="bf16", passes=2, against="diffusers", errors=True)
    ((_, result),) = speed.compare([one])
    assert list(result.contenders) == [DIFFUSERS, PLAIN, OURS]
    assert result.ratio_to_diffusers == pytest.approx(result.contenders[DIFFUSERS].ms / result.ours_ms)
    assert result.contenders[DIFFUSERS].max_difference == 0.0
    assert result.error_ratio is not None
    assert 0.5 < result.error_ratio < 1.5
    assert set(result.contenders[DIFFUSERS].stages_ms) == {"encode", "step", "decode"}


@pytest.mark.usefixtures("fast_peak")
def test_in_fp32_ours_is_the_references_image() -> None:
    pytest.importorskip("diffusers")
    ((_, result),) = speed.compare([setting(against="diffusers", errors=True)])
    assert result.max_difference is not None
    assert result.rms_difference is not None
    assert 0.0 < result.rms_difference <= result.max_difference < 1e-5
    assert result.error_ratio is None


@pytest.mark.usefixtures("fast_peak")
def test_the_page_and_the_objects_have_one_entry_per_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    words = ["--arch", "mini", "--size", "64", "96", "--passes", "1", "2", "--repeat", "1"]
    speed.main([*words, "--json", str(figures), "--markdown", str(page)])
    objects = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    assert [(entry["size"], entry["passes"]) for entry in objects] == [(64, 1), (64, 2), (96, 1), (96, 2)]
    assert all(entry["ratio_to_diffusers"] is None for entry in objects)
    text = page.read_text(encoding="utf-8")
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert "mini 96 px fp32, two passes" in text
    assert "python benchmarks/speed.py --arch mini --size 64 96 --passes 1 2 --dtype fp32" in text
    assert str(tmp_path) not in text


def test_a_photo_alone_leaves_the_comparison_out(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    speed.main(["--photo", "0.01", "--json", str(figures)])
    (entry,) = (json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines())
    assert entry["photo_megapixels"] == 0.01
    assert entry["photo_s"] > 0.0


def test_the_first_image_comes_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(speed_first, "RUNS", 1)
    seconds = speed_first.first_image("fp32", "cpu")
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in ("import", "load", "run")))
    assert min(seconds.values()) > 0.0


def test_the_photo_has_the_size_asked_for_and_a_content() -> None:
    image = speed_networks.photo(Extent(48, 100))
    assert image.shape == (1, 48, 100, 3)
    assert 0.0 <= image.min() < image.max() <= 1.0
    assert image.std() > 0.1


def test_this_machine_reaches_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speed_timing.PRODUCT_EDGES", {"cpu": 64})
    monkeypatch.setattr("speed_timing.CONVOLUTIONS", {"cpu": ((8, 16),)})
    assert 1e6 < peak_flops("cpu", torch.float32) < 1e15


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "3"],
        ["--repeat", "0"],
        ["--compile"],
        ["--errors"],
        ["--photo", "0"],
        ["--kernels", "fused"],
        ["--passes", "3"],
    ],
    ids=" ".join,
)
def test_choices_that_mean_nothing_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse(words)
    assert "expected" in capsys.readouterr().err or words == ["--passes", "3"]


def test_the_plan_of_two_passes_counts_more_work(ours: Sequence[Contender]) -> None:
    (specialised,) = (contender for contender in ours if isinstance(contender, Ours) and contender.name == OURS)
    once, twice = (specialised.flops(setting(passes=passes).work()) for passes in (1, 2))
    assert once < twice < 2 * once
