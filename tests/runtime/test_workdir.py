import json

import pytest
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.runtime import workdir as workdir_lib


def config(**overrides):
    return from_config_dict(tiny_config(**overrides))


def test_the_workdir_of_another_config_is_refused_by_field(tmp_path):
    workdir_lib.claim(config(), tmp_path)
    workdir_lib.mark_done(config(), tmp_path, "data")
    with pytest.raises(UserError) as error:
        workdir_lib.claim(config(backbone__width=32, data__seed=3), tmp_path)
    assert "backbone.width is 16 there and 32 here" in str(error.value) and "data.seed" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_a_workdir_without_results_is_free(tmp_path):
    workdir_lib.claim(config(data__source="folder", data__path="wrong"), tmp_path)
    workdir_lib.claim(config(data__source="folder", data__path="right"), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"prior__training__steps": 9},
        {"sample__seed": 4},
        {"mesh__fsdp": 2},
        {"tokenizer__training__log_every": 1},
        {"backbone__remat": "full"},
        {"backbone__attention_implementation": "xla"},
        {"method__bucket_steps": 2},
        {"data__workers": 2},
        {"name": "other"},
    ],
)
def test_fields_that_may_change_are_taken_over(tmp_path, change):
    workdir_lib.claim(config(), tmp_path)
    workdir_lib.mark_done(config(), tmp_path, "data")
    changed = config(**change)
    workdir_lib.claim(changed, tmp_path)
    workdir_lib.claim(changed, tmp_path)
    field, value = next(iter(change.items()))
    stored = json.loads((tmp_path / "config.json").read_text())
    for part in field.split("__"):
        stored = stored[part]
    assert stored == value


@pytest.mark.parametrize(
    ("change", "undone"),
    [
        ({}, set()),
        ({"evaluate__clips": 1}, {"evaluate"}),
        ({"sample__seed": 1}, {"sample", "evaluate"}),
        ({"prior__training__steps": 9}, {"prior", "sample", "evaluate"}),
        ({"tokenizer__training__steps": 9}, {"tokenizer", "prior", "sample", "evaluate"}),
        (
            {"prior__training__checkpoint_every": 1, "mesh__data": 1, "data__workers": 1},
            set(),
        ),
    ],
)
def test_a_change_undoes_the_stages_whose_result_it_changes(tmp_path, change, undone):
    for stage in workdir_lib.STAGES:
        workdir_lib.mark_done(config(), tmp_path, stage)
    assert {
        stage
        for stage in workdir_lib.STAGES
        if not workdir_lib.is_done(config(**change), tmp_path, stage)
    } == undone


def test_a_stage_says_what_it_still_needs(tmp_path):
    workdir_lib.mark_done(config(), tmp_path, "data")
    workdir_lib.require(config(), tmp_path, "tokenizer")
    with pytest.raises(
        UserError, match=r"^The sample stage needs the tokenizer, prior stages first[^\n]*\.$"
    ):
        workdir_lib.require(config(), tmp_path, "sample")
