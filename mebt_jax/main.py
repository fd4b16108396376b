"""Entry point: `python -m mebt_jax.main --config=configs/demo.py [--workdir=DIR] [--stage=all]
[--config.FIELD=VALUE ...]`.

Runs the stages in order, skips those that are done, goes on with one that was cut short, and says
where everything is.
"""

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.config_fields import describe, walk
from mebt_jax.errors import UserError
from mebt_jax.runtime import cluster, compilation, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import data, evaluate, prior, sample, tokenizer
from mebt_jax.stages.evaluation import compare_folders

STAGES = {
    "data": data.run,
    "tokenizer": tokenizer.run,
    "prior": prior.run,
    "sample": sample.run,
    "evaluate": evaluate.run,
}

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); see configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything of this run goes; default runs/<config.name>."
)
STAGE = flags.DEFINE_enum(
    "stage", "all", ["all", *STAGES], "Stage to run; all runs what is not done yet."
)
CHECK = flags.DEFINE_bool(
    "check", False, "Verify the prepared records of this config, and do nothing else."
)
HELP_FIELDS = flags.DEFINE_bool(
    "help_fields", False, "Print every field of this config with its value, and do nothing else."
)
PROFILE = flags.DEFINE_bool(
    "profile", False, "Write a profile of some steps of each training, for TensorBoard or Perfetto."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0, where no launcher is detected; or the variables "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Processes of this run, with --coordinator."
)
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, with --coordinator.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(
            f"Unknown argument {argv[1]!r}; flags begin with --, such as --config=configs/demo.py."
        )
    logging.set_verbosity(
        logging.WARNING
    )  # JAX tells at INFO of each kind of device that this machine does not have
    CONFIG.value.runtime.profile |= PROFILE.value
    config = config_lib.from_config_dict(CONFIG.value)
    if HELP_FIELDS.value:
        print(describe(config, "config"))
        return
    workdir = Path(WORKDIR.value or Path("runs") / config.name)
    cluster.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if CHECK.value:
        data.check(config, workdir)
        return
    compilation.enable_cache(config.runtime.compilation_cache)
    compiled = compilation.CompilationCounter()
    workdir_lib.claim(config, workdir)

    if compare_folders.wanted(config):
        if STAGE.value != "evaluate":
            raise UserError(
                "config.evaluate.real and config.evaluate.fake compare folders, which "
                "--stage=evaluate does; give it, "
                "or leave them empty."
            )
        compare_folders.run(config, workdir)
        return

    for stage in STAGES if STAGE.value == "all" else [STAGE.value]:
        if workdir_lib.is_done(config, workdir, stage):
            telemetry.say(f"{stage}: done already, see {workdir_lib.stage_folder(workdir, stage)}")
            continue
        workdir_lib.require(config, workdir, stage)
        telemetry.say(f"{stage}: runs in {workdir_lib.stage_folder(workdir, stage)}")
        STAGES[stage](config, workdir)
    telemetry.say(
        f"Everything is in {workdir}; {compiled.count} programs compiled or loaded in "
        f"{compiled.seconds:.0f} s."
    )


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with its errors and those of ml_collections turned into one sentence each."""
    try:
        positional = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise UserError("No config given; choose one, for instance --config=configs/demo.py.")
        # That the file could not be loaded shows at the first access.
        getattr(CONFIG.value, "name", None)
    except flags.Error as error:
        raise UserError(f"{error}".strip().replace("\n", " ")) from error
    except (
        AttributeError,
        KeyError,
    ) as error:  # of ml_collections, about a field that is not there
        raise UserError(unknown_field(str(error), argv)) from error
    except ImportError as error:
        raise UserError(
            f"Could not load the config: {error}; a config file starts from "
            "mebt_jax.config.default_config(), or from a file beside it by config_beside."
        ) from error
    except OSError as error:
        raise UserError(
            f"Could not load the config: {str(error).splitlines()[-1].strip()}"
        ) from error
    return positional


def unknown_field(error: str, argv: list[str]) -> str:
    """The sentence about a field that the command line or the config file sets and that is not
    there, from what ml_collections says of it.
    """
    name = re.search(r"'(\w+)'", error.replace("\\", ""))
    given = [arg.lstrip("-").split("=")[0] for arg in argv]
    path = next((arg for arg in given if name and f".{name[1]}" in arg), None)
    fields = [field for field, _, _ in walk(Config(), "config")]
    known = [*fields, *dict.fromkeys(field.rpartition(".")[0] for field in fields)]
    return config_lib.unknown_field(path or f"config.{name[1] if name else error}", known)


def run() -> None:
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except JaxRuntimeError as error:
        cluster.leave(error)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
