from pathlib import Path

import pytest

from sana_quant.policy import Policy, load_policy
from sana_quant.search.edits import changed, named, short, signature, to_toml, uniform

DEPTH = 20
FP8 = uniform("fp8", DEPTH, "bf16")
MIXED = changed(changed(FP8, ["SA-Q", "SA-K"], range(DEPTH), "nvfp4"), ["FFN-Input"], range(6, 20), "nvfp4")
SCATTERED = changed(changed(MIXED, ["CA-O"], [3, 17], "bf16"), ["CA-O"], [5], "nvfp4")
POLICIES = [FP8, uniform("nvfp4", DEPTH, "fp32"), MIXED, SCATTERED, load_policy("mpq", DEPTH)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: short(policy, "fp8"))
def test_a_written_policy_reads_back(policy: Policy, tmp_path: Path) -> None:
    path = tmp_path / "found.toml"
    path.write_text(to_toml(named(policy, "found", 'RelRMSE "0.1"')))
    again = load_policy(str(path), DEPTH)
    assert signature(again) == signature(policy)
    assert (again.name, again.title) == ("found", 'RelRMSE "0.1"')


def test_ranges_are_written_by_name_so_that_a_model_of_another_depth_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "found.toml"
    path.write_text(to_toml(MIXED))
    other = load_policy(str(path), 8)
    assert other.groups["FFN-Input"] == ("fp8",) * 2 + ("nvfp4",) * 6


def test_a_signature_is_about_what_is_computed() -> None:
    assert signature(named(MIXED, "a", "b")) == signature(MIXED)
    assert len({signature(policy) for policy in POLICIES}) == len(POLICIES)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (FP8, "all fp8"),
        (changed(FP8, FP8.groups, range(14, 20), "nvfp4"), "all nvfp4 deep"),
        (MIXED, "SA-Q + SA-K nvfp4, FFN-Input nvfp4 middle deep"),
        (SCATTERED, "SA-Q + SA-K nvfp4, CA-O bf16 3 17, CA-O nvfp4 5, FFN-Input nvfp4 middle deep"),
    ],
)
def test_a_short_name_says_what_differs(policy: Policy, text: str) -> None:
    assert short(policy, "fp8") == text
