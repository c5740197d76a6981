from pathlib import Path

import pytest

from gendr_core.cli.files import check_weight_target
from gendr_core.errors import OptionError


def test_where_a_weight_file_goes_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    check_weight_target(path, overwrite=False)
    path.touch()
    check_weight_target(path, overwrite=True)
    for wrong, message in (
        (path, r"prompt\.safetensors exists already: .* --overwrite"),
        (tmp_path / "prompt.pt", r"expected a name that ends in \.safetensors or \.sft, got 'prompt\.pt'"),
        (tmp_path / "nowhere" / path.name, "expected a folder to write to, found none at"),
    ):
        with pytest.raises(OptionError, match=message):
            check_weight_target(wrong, overwrite=False)
