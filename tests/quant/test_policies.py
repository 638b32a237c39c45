import re
from pathlib import Path

import pytest

from sana_quant.groups import GROUPS
from sana_quant.policy import Policy, load_policy, shipped
from sana_runtime.errors import ConfigError


@pytest.fixture
def user_policy(tmp_path: Path):
    def load(text: str, depth: int = 20) -> Policy:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_policy(str(path), depth)

    return load


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [("fp32", "fp32", "fp32"), ("bf16", "bf16", "bf16"), ("fp8", "fp8", "bf16"), ("fp4", "nvfp4", "bf16")],
)
@pytest.mark.parametrize("depth", [4, 8, 20])
def test_a_uniform_policy_is_uniform(name: str, inside: str, outside: str, depth: int) -> None:
    policy = load_policy(name, depth)
    assert {policy.precision(group, block) for group in GROUPS for block in range(depth)} == {inside}
    assert policy.precision(None, None) == policy.precision(None, 3) == outside
    assert policy.precisions == {inside, outside}


def test_mpq_is_the_papers_policy() -> None:
    policy = load_policy("mpq", 20)
    everywhere = {"CA-O", "SA-Q", "SA-K", "FFN-Temporal"}
    late = {"FFN-Input", "FFN-Output"}
    for group in GROUPS:
        for block in range(20):
            four = group in everywhere or (group in late and block >= 6)
            assert policy.precision(group, block) == ("nvfp4" if four else "fp8"), (group, block)
    assert policy.outside == "bf16"


def test_mpq_fits_a_model_of_another_depth() -> None:
    assert load_policy("mpq", 8).groups["FFN-Input"] == ("fp8",) * 2 + ("nvfp4",) * 6


def test_every_shipped_policy_loads_and_says_what_it_is() -> None:
    assert set(shipped()) == {"fp32", "bf16", "fp8", "fp4", "mpq"}
    for name in shipped():
        policy = load_policy(name, 20)
        assert policy.name == name
        assert policy.title != name


def test_a_user_file_with_ranges_names_and_single_blocks(user_policy) -> None:
    policy = user_policy('default = "bf16"\n[groups]\nSA-V = { shallow = "fp8", 6-7 = "nvfp4", 19 = "fp8" }\n')
    assert policy.groups["SA-V"] == ("fp8",) * 6 + ("nvfp4",) * 2 + ("bf16",) * 11 + ("fp8",)
    assert policy.groups["SA-Q"] == ("bf16",) * 20
    assert policy.name == policy.title == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('default = "int3"', "default = 'int3': allowed are fp32, bf16, fp8, nvfp4"),
        ('default = "fp8"\noutside = "fp8"', "outside = 'fp8': allowed are bf16, fp32"),
        ('defualt = "fp8"', "the key 'defualt': allowed are title, default, outside, groups"),
        ('title = "nothing"', "no `default`"),
        ('default = "fp8"\ngroups = "fp8"', "a table [groups]"),
        ('default = "fp8"\n[groups]\nSA-X = "fp8"', "the group 'SA-X': allowed are SA-Q, SA-K"),
        ('default = "fp8"\n[groups]\nSA-Q = "fp5"', "group SA-Q, has the precision 'fp5': allowed are fp32"),
        ('default = "fp8"\n[groups]\nSA-Q = 4', "group SA-Q, has the precision 4"),
        ('default = "fp8"\n[groups.CA-O]\nmiddle = "fp5"', "group CA-O, has middle = 'fp5'"),
        ('default = "fp8"\n[groups.CA-O]\nupper = "fp8"', "blocks 'upper': write shallow, middle, deep, a block"),
        ('default = "fp8"\n[groups.CA-O]\n6-20 = "fp8"', "blocks '6-20', but the model has the blocks 0-19"),
        ('default = "fp8"\n[groups.CA-O]\n7-6 = "fp8"', "blocks '7-6', but"),
        ('default = "fp8"\n[groups.CA-O]\nmiddle = "fp8"\n10-12 = "bf16"', "block 10 in 'middle' and in '10-12'"),
        ("default = fp8", "is not TOML"),
    ],
)
def test_a_wrong_entry_is_named_with_what_may_stand_there(user_policy, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        user_policy(text)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_range_is_checked_against_the_model(user_policy) -> None:
    text = 'default = "fp8"\n[groups.CA-O]\n6-19 = "nvfp4"'
    assert user_policy(text, depth=20).precision("CA-O", 6) == "nvfp4"
    with pytest.raises(ConfigError, match="the model has the blocks 0-7"):
        user_policy(text, depth=8)


def test_a_name_that_is_no_policy_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown --policy 'int3': choose one of .*mpq, or name a \.toml file"):
        load_policy("int3", 20)
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        load_policy(str(tmp_path / "absent.toml"), 20)
