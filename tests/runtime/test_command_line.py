import pytest

from mebt_jax import main
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
            [CONFIG, "--config.transformer.widht=3"],
            r"^Unknown config field config.transformer.widht; did you mean "
            r"config.transformer.width\?$",
        ),
        (
            [CONFIG, "--config.transfrmer.width=3"],
            r"^Unknown config field config.transfrmer.width; did you mean "
            r"config.transformer.width\?$",
        ),
        (
            [CONFIG, "--config.zzz=3"],
            r"Unknown config field config\.zzz; configs/base\.py lists every field\.",
        ),
        ([CONFIG, "--config.transformer.width=wide"], r"--config\.transformer\.width=wide"),
        ([CONFIG, "--wrokdir=x"], "wrokdir.*workdir"),
        ([CONFIG, "--stage=train"], r"all\|data\|tokenizer\|transformer\|sample\|evaluate"),
        (["--config=configs/nope.py"], r"nope\.py"),
        ([], r"--config=configs/demo\.py"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main", *arguments])  # config_flags looks there for the fields
    with pytest.raises(UserError, match=sentence) as error:
        main.parse_flags(["main", *arguments])
    assert "\n" not in str(error.value)
