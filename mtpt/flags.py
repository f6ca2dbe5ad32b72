"""Flags of the verbs: absl's, and a config whose every field --config.section.key=value can set.

The config file's own keys are laid over the defaults of the dataclasses first, so that any field
can be overridden, and not only those that the file names.
"""

import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import pkgutil
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from mtpt.config import UserError, nearest, read

HOST_FLAGS = dict(
    coordinator=(str, None, 'HOST:PORT of process 0, where JAX cannot find it by itself'),
    processes=(int, None, 'number of processes, with --coordinator'),
    process=(int, None, 'which of them this is, from 0, with --coordinator'),
    join_seconds=(float, 300.0, 'how long the processes wait for each other to start'),
    heartbeat=(int, 60, 'seconds of silence after which a process counts as dead, and all end'),
)

VERB_FLAGS = dict(
    train=dict(
        workdir=(str, None, 'folder of the run; made if absent, resumed if not'),
        debug=(bool, False, 'one device, NaN checks, no thread ahead of the steps, tracebacks'),
        restarts=(int, 0, 'starts again after a crash, so often without a new checkpoint'),
        **HOST_FLAGS,
    ),
    evaluate=dict(
        workdir=(str, None, 'folder of the run'),
        mixture=(str, None, 'name of a mixture or task to evaluate on'),
        follow=(bool, None, 'examine every new checkpoint until the run is over'),
        poll=(float, None, 'of --follow: seconds between looks for a checkpoint (10)'),
        patience=(float, None, 'of --follow: seconds without a new one that end it (0: never)'),
        step=(int, None, 'checkpoint to evaluate (the newest)'),
        split=(str, None, "split of the tasks (what the run's config says, else validation)"),
        set=(list, [], 'evaluation settings, such as normalisation=mean,max_examples=100'),
        **HOST_FLAGS,
    ),
    generate=dict(
        workdir=(str, None, 'folder of the run'),
        input=(str, None, 'text to complete; without it, each line of standard input'),
        step=(int, None, 'checkpoint to use (the newest)'),
        max_length=(int, 0, 'longest output in tokens (the targets_length of the run)'),
        choices=(
            list,
            None,
            'the only answers allowed, such as yes,no; the likeliest is given; one that holds a '
            'comma is put in double quotes',
        ),
        task=(str, None, 'the task that the inputs are of, for a model that routes by task'),
        number=(int, None, 'answers an input, with --sample or --beams (1)'),
        sample=(bool, None, 'draw tokens instead of taking the likeliest'),
        temperature=(float, None, 'of --sample: what logits are divided by (1)'),
        top_k=(int, None, 'of --sample: from the likeliest so many tokens (0: all)'),
        top_p=(float, None, 'of --sample: from tokens that hold so much probability (1: all)'),
        seed=(int, None, 'of --sample: another seed draws other answers (0)'),
        beams=(int, None, 'beams of a search for the likeliest answer (0: no search)'),
        length_penalty=(
            float,
            None,
            'of a search: log-probability is divided by length to this power (1; 0 for choices)',
        ),
        early_stopping=(bool, None, 'of a search: end with as many answers as beams'),
    ),
    score=dict(
        workdir=(str, None, 'folder of the run'),
        input=(str, None, 'file of JSON lines with inputs and targets (standard input)'),
        out=(str, None, 'file to write (standard output)'),
        step=(int, None, 'checkpoint to use (the newest)'),
    ),
    synthesise=dict(
        workdir=(str, None, 'folder of a run that was tuned to synthesise'),
        corpus=(str, None, 'text file, a document a line, or .jsonl with a text (.gz is read too)'),
        out=(str, None, 'file of JSON lines to write; what is there already is gone on with'),
        shots=(int, 1, 'documents in a row that make one line'),
        max_length=(int, 0, 'most tokens about a document (the targets_length of the run)'),
        step=(int, None, 'checkpoint to use (the newest)'),
    ),
    search=dict(
        workdir=(str, None, 'folder of the run'),
        task=(str, None, 'the task whose wording is searched'),
        population=(int, None, 'wordings of a generation (16)'),
        generations=(int, None, 'generations after the registered wordings (6)'),
        examples=(int, None, 'labelled examples that wordings are scored on (32)'),
        check=(int, None, 'other examples that the best are asked in the end (200)'),
        split=(str, None, 'where the examples are from (validation)'),
        related=(list, None, 'tasks or globs whose wordings are taken up (the family of the task)'),
        fill=(bool, None, 'let the model fill gaps in wordings'),
        seed=(int, None, 'another seed goes another way (0)'),
        step=(int, None, 'checkpoint to use (the newest)'),
    ),
    extract=dict(
        workdir=(str, None, 'folder of the run with experts'),
        task=(str, None, 'name of a task of the run (a task that is not known)'),
        input=(str, None, 'an example of its inputs, for routing that looks at the prompt'),
        out=(str, None, 'folder to write, as that of a run'),
        step=(int, None, 'checkpoint to use (the newest)'),
    ),
    report=dict(workdir=(str, None, 'folder of the run')),
    tasks={
        'workers': (int, None, 'of check and overlap: processes at work (0: as many as pay)'),
        'seconds': (float, None, 'of check: after which a task that does not answer is given up'),
        'mocked': (bool, None, 'of check: TFDS tasks on made-up examples, nothing downloaded'),
        'workdir': (str, None, 'of overlap: folder of a run, whose report then shows it'),
        'cache': (str, None, "of overlap: folder of a cache, where it is not the run's"),
        'n': (int, None, 'of overlap: length of the n-grams (13 words or 8, by the measure)'),
        'measure': (str, None, 'of overlap: any (as GPT-3, the default) or share (as PaLM)'),
        'out': (str, None, 'of overlap: JSON file to write (overlap.json in the folder)'),
        'family': (str, None, 'of new: family of the task'),
        'from': (str, None, 'of new: file of JSON lines that holds its examples'),
    },
    cache=dict(
        mixture=(str, None, 'name of the mixture or task'),
        out=(str, None, 'folder to write to, here or in a cloud (gs://bucket/name)'),
        runner=(str, 'local', 'who works: local, or of Apache Beam DirectRunner, FlinkRunner, ...'),
        workers=(int, None, 'of local: processes (0, the default: one a core; 1: this one)'),
        memory=(float, 0.0, "of local: GiB that all of them may take (half of the machine's)"),
        beam_options=(str, '', 'of Beam: its own options, such as "--project=x --region=y"'),
    ),
    convert=dict(
        source=(str, None, 'folder of Hugging Face, checkpoint of T5X, or folder of a run'),
        out=(str, None, 'folder to write: of a run, or from a run one of Hugging Face'),
        vocabulary=(str, None, "SentencePiece model, or 'bytes', where the source has none"),
        dtype=(str, 'stored', 'of the written weights: float32, bfloat16 or stored (no change)'),
        mlp=(str, None, 'for T5X, the kind of a gated hidden layer, such as geglu'),
        step=(int, None, 'checkpoint of a run to convert (the newest)'),
    ),
    vocabulary=dict(
        corpus=(str, None, 'text file, a document a line (.gz is read too)'),
        size=(int, 32000, 'number of pieces'),
        out=(str, None, 'the .model file to write'),
    ),
    sweep=dict(
        workdir=(str, None, 'folder of all runs and of the table'),
        over=('multi', None, 'section.key=a,b,c; more than once for a grid'),
        seeds=(int, 3, 'number of seeds a setting'),
    ),
    plan=dict(
        topology=(str, None, 'v5p:8x8x8, h100:HOSTSxGPUS, cpu:8 (what the config declares)'),
        slices=(int, 1, 'slices of that topology, which the slow network joins'),
        mfu=(float, 0.4, 'the share of peak FLOP/s that training is taken to reach'),
        price=(float, None, 'dollars a chip-hour, for what the run costs'),
        tasks=(int, None, 'number of tasks of the run, where no cache tells it'),
        search=(bool, None, 'try meshes, microbatches and remat policies; print the best'),
        compile=(bool, None, 'compile the step for the topology, here, with its own compiler'),
        out=(str, None, 'JSON file to write all figures to'),
        cache=(str, None, 'folder of plans made before (~/.cache/mtpt/plans)'),
    ),
    doctor=dict(),
)

DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_list,
    'multi': flags.DEFINE_multi_string,
}


def parse(verb: str, argv: list[str], with_config: bool) -> types.SimpleNamespace | None:
    """Reads a verb's flags; None when the user asked for --help, which is then printed.

    Raises:
      UserError: an unknown flag, a value of the wrong type, an unknown key or file in --config.
    """
    values = flags.FlagValues()
    for name, (kind, default, text) in VERB_FLAGS[verb].items():
        DEFINE[kind](name, default, text, flag_values=values)
    if {'-h', '--help'} & set(argv):
        print(f'mtpt {verb}\n{values.get_help()}' + (CONFIG_HELP if with_config else ''))
        return None
    argv = _joined(argv)
    argument = next((a.split('=', 1)[1] for a in argv if a.startswith('--config=')), None)
    overrides = [a for a in argv if a.startswith('--config.')]
    rest = [a for a in argv if not a.startswith(('--config=', '--config.'))]
    if not with_config and (argument or overrides):
        raise UserError(f'mtpt {verb} takes no --config; the run folder holds its own')
    try:
        words = values([verb, *rest])[1:]
    except flags.Error as error:
        raise UserError(f'{error}; mtpt {verb} --help lists the flags') from error
    if words and verb != 'tasks':
        raise UserError(f'what does {words[0]!r} mean here? mtpt {verb} --help lists the flags')
    args = {name: values[name].value for name in VERB_FLAGS[verb]}
    if with_config:
        if verb in ('train', 'sweep', 'plan') and argument is None:
            raise UserError(f'--config is missing; add --config=quickstart, {nearest("", names())}')
        args.update(config_argument=argument, overrides=overrides)
        if verb != 'plan':  # which looks at its cache first, and that needs no JAX
            args['run'] = load(argument, overrides)
            args['config_name'] = args['run'].name
    return types.SimpleNamespace(words=words, **args)


OPEN = ('config.tasks.args',)  # sections whose keys are not ours

CONFIG_HELP = """
  --config: NAME of a file in configs/, or a FILE.py, with :ARGUMENT if it takes one
  --config.section.key=value: sets any field of the config
"""


def load(argument: str | None, overrides: list[str] = ()) -> Any:
    """Reads a config by name or path, with `--config.key=value` overrides, into a `Run`."""
    from mtpt.settings import Run

    name, config = 'default', {}
    if argument is not None:
        name, config = _from_file(argument)
    run = read(Run, {'name': name, **_plain(config)})
    full = _config_dict(run)
    if overrides:
        for override in overrides:
            _check_key(override, full)
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict(
            'config',
            full,
            flag_values=values,
            sys_argv=['mtpt', *overrides],
            lock_config=False,
            accept_new_attributes=True,  # of OPEN sections; _check_key has refused others
        )
        try:
            values(['mtpt', *overrides])
        except (flags.Error, TypeError, ValueError, KeyError) as error:
            raise UserError(f'cannot set {" ".join(overrides)}: {error}') from error
    return read(Run, full.to_dict())


def names() -> list[str]:
    """The configs that come with mtpt."""
    import mtpt.configs

    found = pkgutil.iter_modules(mtpt.configs.__path__)
    return sorted(m.name for m in found if not m.name.startswith('_'))


def written(argument: str) -> tuple[dict[str, Any], str | None]:
    """What a config file itself says, defaults left out; and the TOPOLOGY that it declares."""
    name, config = _from_file(argument)
    path = argument.partition(':')[0]
    topology = getattr(_module(path), 'TOPOLOGY', None)
    if topology is not None and not isinstance(topology, str):
        raise UserError(f"TOPOLOGY in {path} must be text such as 'v5e:4x4', and is {topology!r}")
    return {'name': name, **_plain(config)}, topology


def _module(path: str) -> types.ModuleType:
    if path.endswith('.py') or '/' in path:
        file = pathlib.Path(path)
        if not file.is_file():
            raise UserError(f'no config file {path}; by name there are: {", ".join(names())}')
        spec = importlib.util.spec_from_file_location(f'mtpt_config_{file.stem}', file)
        module = importlib.util.module_from_spec(spec)
        with _blamed(path, spec.origin):
            spec.loader.exec_module(module)
        return module
    if path not in names():
        raise UserError(f'no config {path!r}; {nearest(path, names())}')
    import mtpt.configs

    name = f'mtpt.configs.{path}'
    found = importlib.machinery.PathFinder.find_spec(name, mtpt.configs.__path__)
    with _blamed(path, found.origin):
        return importlib.import_module(name)


@contextlib.contextmanager
def _blamed(path: str, file: str) -> Iterator[None]:
    """Says of what goes wrong in a config file that it is the file's, and in which line.

    Raises:
      UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        where = path if error.filename in (None, file) else f'{error.filename}, which {path} needs,'
        raise UserError(f'{where} is not Python: line {error.lineno}: {error.msg}') from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        at = f', line {lines[-1]}' if lines else ''
        said = ' '.join(str(error).split())
        raise UserError(f'{path}{at}: {type(error).__name__}: {said}') from error


def _from_file(argument: str) -> tuple[str, Any]:
    path, _, arg = argument.partition(':')
    module = _module(path)
    if not callable(getattr(module, 'get_config', None)):
        raise UserError(f'{path} has no get_config(); a config file defines it')
    if arg and not inspect.signature(module.get_config).parameters:
        raise UserError(f'the config {path} takes no argument; leave out :{arg}')
    with _blamed(path, module.__file__):
        config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, (Mapping, config_dict.ConfigDict)):
        raise UserError(
            f'get_config() of {path} must return a ConfigDict, and gave {type(config).__name__}'
        )
    return pathlib.Path(path).stem, config


def _plain(config):
    return config.to_dict() if hasattr(config, 'to_dict') else dict(config)


def _config_dict(config: Any) -> config_dict.ConfigDict:
    """A dataclass as a ConfigDict; None becomes a placeholder that flags can set."""
    hints, fields = typing.get_type_hints(type(config)), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = _config_dict(value)
        elif isinstance(value, dict):
            value = config_dict.ConfigDict(
                {k: _config_dict(v) if dataclasses.is_dataclass(v) else v for k, v in value.items()}
            )
        elif value is None:
            kind = next(t for t in typing.get_args(hints[field.name]) if t is not type(None))
            value = config_dict.placeholder(kind)
        fields[field.name] = value
    return config_dict.ConfigDict(fields)


def _check_key(override: str, config) -> None:
    keys, path = override.removeprefix('--config.').split('=', 1)[0].split('.'), 'config'
    for key in keys:
        if path in OPEN:
            return
        if not hasattr(config, 'keys') or key not in config:
            known = config.keys() if hasattr(config, 'keys') else []
            raise UserError(f'{path}.{key} is not a setting; {nearest(key, known)}')
        config, path = config[key], f'{path}.{key}'


def _joined(argv: list[str]) -> list[str]:
    """Accepts `--config NAME` beside `--config=NAME`."""
    out = []
    for word in argv:
        if out and out[-1].startswith('--config') and '=' not in out[-1]:
            out[-1] += f'={word}'
        else:
            out.append(word)
    return out
