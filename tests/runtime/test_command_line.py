import pytest

from mebt_jax import main
from mebt_jax.config import Config
from mebt_jax.config_fields import walk
from mebt_jax.errors import UserError

CONFIG = "--config=tests/tiny_config.py"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    yield
    main.flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [CONFIG, "--config.backbone.widht=3"],
            r"^Unknown config field config.backbone.widht; did you mean config.backbone.width\?$",
        ),
        (
            [CONFIG, "--config.backbne.width=3"],
            r"^Unknown config field config.backbne.width; did you mean config.backbone.width\?$",
        ),
        (
            [CONFIG, "--config.transformer.latents=3"],
            r"^Unknown config field config.transformer.latents; an earlier version had it, now it "
            r"is config.backbone.num_latents\.$",
        ),
        (
            [CONFIG, "--config.sample.top_k=3"],
            r"config.sample.top_k; an earlier version had it, now it is config.decoding.top_k\.$",
        ),
        ([CONFIG, "--config.zzz=3"], r"config\.zzz; the fields of config are name, data, "),
        ([CONFIG, "--config.backbone.width=wide"], r"--config\.backbone\.width=wide"),
        ([CONFIG, "--wrokdir=x"], "wrokdir.*workdir"),
        ([CONFIG, "--stage=train"], r"all\|data\|tokenizer\|prior\|sample\|evaluate"),
        (["--config=configs/nope.py"], r"nope\.py"),
        ([], r"--config=configs/demo\.py"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main", *arguments])  # config_flags looks there for the fields
    with pytest.raises(UserError, match=sentence) as error:
        main.parse_flags(["main", *arguments])
    assert "\n" not in str(error.value)


def test_help_lists_every_field_with_its_value_and_runs_nothing(tmp_path, monkeypatch, capsys):
    arguments = [
        CONFIG,
        f"--workdir={tmp_path}/run",
        "--config.evaluate.clips=7",
        "--help_fields",
    ]
    monkeypatch.setattr("sys.argv", ["main", *arguments])
    main.parse_flags(["main", *arguments])
    main.main(["main"])
    printed = capsys.readouterr().out
    assert "--config.evaluate.clips=7\n        Held-out clips to evaluate on" in printed
    for name, _, _ in walk(Config(), "config"):
        assert f"--{name}=" in printed
    assert not (tmp_path / "run").exists()


def test_a_config_file_of_an_earlier_version_is_told_the_new_names(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from mebt_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.transformer.width = 64\n"
        "    return config\n"
    )
    arguments = [f"--config={file}", "--config.data.frames=8"]
    monkeypatch.setattr("sys.argv", ["main", *arguments])
    with pytest.raises(
        UserError, match=r"config\.transformer; .* config\.backbone.*prior"
    ) as error:
        main.parse_flags(["main", *arguments])
    assert "\n" not in str(error.value)


def test_a_config_file_that_imports_what_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("from nowhere import base\n")
    monkeypatch.setattr("sys.argv", ["main", f"--config={file}"])
    with pytest.raises(UserError, match=r"No module named 'nowhere'; .*default_config\(\)"):
        main.parse_flags(["main", f"--config={file}"])
