import pytest
from pack import Pack
from weights import LATENT, PIXEL


@pytest.mark.parametrize("name", [LATENT, PIXEL])
def test_a_base_of_other_widths_is_refused_by_name(pack: Pack, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a UNet of SD2\.1's shape .* got widths \(8, 16\)"):
        pack.nodes["GenDR_LoadBase"].execute(name)


def test_a_replaced_base_is_read_again(pack: Pack) -> None:
    loader = pack.nodes["GenDR_LoadBase"]
    assert loader.fingerprint_inputs(PIXEL) == loader.fingerprint_inputs(PIXEL) != loader.fingerprint_inputs(LATENT)


def test_bundled_restorers_are_not_offered_as_a_base(pack: Pack) -> None:
    assert pack.nodes["GenDR_LoadBase"].define_schema().inputs[0].options == [LATENT, PIXEL]
