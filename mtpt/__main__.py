"""The verbs of the command line; each imports what it needs when called: --help is instant."""

import os
import sys

from mtpt import statuses

VERBS = {
    'train': 'pretrain or tune as a config says; the same command on the same folder resumes',
    'evaluate': 'zero-shot scores of a run on a mixture of tasks',
    'generate': 'complete a text with a run (from --input or standard input)',
    'score': 'the log-probability of given targets, in all and by token (JSON lines)',
    'search': 'the best wording for a task that a run was not trained on, by genetic algorithm',
    'extract': 'the dense model that one task uses of a run with experts, as a run of its own',
    'synthesise': 'instructions and responses about raw text, by a run tuned to write them',
    'report': 'write report.html for a run',
    'tasks': 'list | show NAME | check MIXTURE | overlap | new NAME',
    'cache': 'write the token shards and evaluation sets of a mixture',
    'convert': 'a Hugging Face folder or a T5X checkpoint to the folder of a run, and back',
    'vocabulary': 'train a SentencePiece vocabulary on a corpus',
    'sweep': 'run a config over values and seeds; one table with intervals',
    'plan': 'what a run needs and takes on a machine that one lacks, by arithmetic',
    'doctor': 'versions, devices, what is missing and what to do about it',
}

HELP = """mtpt: scalable multi-task pretraining of encoder-decoders

usage: mtpt VERB [--flag=value ...]        mtpt VERB --help lists the flags of a verb

{verbs}

  mtpt train --config=quickstart --workdir=runs/quickstart
  mtpt evaluate --workdir=runs/quickstart --mixture=builtin_new_tasks

  --debug, with any verb: tracebacks in place of sentences; with train: one device and NaN checks

exit status
{statuses}
"""

CONFIG_VERBS = ('train', 'sweep', 'tasks', 'cache', 'plan')
COMPUTING_VERBS = ('train', 'evaluate', 'generate', 'score', 'synthesise', 'search')


def train(args):
    from mtpt import run
    from mtpt.watch import goodput

    goodput.from_the_start()
    workdir = _needed(args.workdir, 'workdir', 'runs/NAME')
    # JAX takes SIGTERM for itself where processes join.
    with statuses.ends_on_sigterm(), _joined(args, args.run), statuses.ends_on_sigterm():
        run.train(args.run, workdir, debug=args.debug)


def evaluate(args):
    from mtpt import run

    if args.follow:
        return _follow(args)
    workdir = _needed(args.workdir, 'workdir', 'runs/NAME')
    mixture = _needed(args.mixture, 'mixture', 'NAME')
    told = dict(mixture=mixture, step=args.step, split=args.split, set=args.set)
    with _joined(args, told):
        run.evaluate(workdir, mixture, step=args.step, split=args.split, overrides=args.set)


def _follow(args):
    import dataclasses

    from mtpt import follow
    from mtpt.config import UserError

    if args.step is not None:
        raise UserError('--follow examines every checkpoint, and --step is one; leave one out')
    if args.coordinator or args.processes or args.process is not None:
        raise UserError('--follow is one process; give it devices of its own, or name a --step')
    told = {f.name: getattr(args, f.name) for f in dataclasses.fields(follow.FollowConfig)}
    cfg = follow.FollowConfig(**{name: value for name, value in told.items() if value is not None})
    workdir = _needed(args.workdir, 'workdir', 'runs/NAME')
    follower = follow.Follower(workdir, args.mixture, cfg, split=args.split, overrides=args.set)
    print(f'{workdir}: the run is over; {follower.follow()} checkpoints were examined')


def generate(args):
    import dataclasses

    from mtpt import run
    from mtpt.evaluate.generate import Decoding

    text = args.input if args.input is not None else sys.stdin.read()
    inputs = [text] if args.input is not None else [t for t in text.splitlines() if t.strip()]
    said = {f.name: getattr(args, f.name) for f in dataclasses.fields(Decoding)}
    answers = run.generate(
        _needed(args.workdir, 'workdir', 'runs/NAME'),
        inputs,
        step=args.step,
        max_length=args.max_length,
        how=Decoding(**{name: value for name, value in said.items() if value is not None}),
        choices=args.choices,
        task=args.task,
    )
    for answer in answers:
        print(answer)


def score(args):
    from mtpt import score as module

    workdir = _needed(args.workdir, 'workdir', 'runs/NAME')
    module.main(workdir, args.input, args.out, args.step)


def synthesise(args):
    from mtpt import synthesise as module

    module.main(
        _needed(args.workdir, 'workdir', 'runs/NAME'),
        _needed(args.corpus, 'corpus', 'FILE'),
        _needed(args.out, 'out', 'FILE.jsonl'),
        args.shots,
        args.max_length,
        args.step,
    )


def search(args):
    import dataclasses

    from mtpt import prompt_search as module

    module.main(
        _needed(args.workdir, 'workdir', 'runs/NAME'),
        _needed(args.task, 'task', 'NAME'),
        {f.name: getattr(args, f.name) for f in dataclasses.fields(module.SearchConfig)},
        args.step,
    )


def extract(args):
    from mtpt import extract as module

    used = module.extract(
        _needed(args.workdir, 'workdir', 'runs/NAME'),
        _needed(args.out, 'out', 'runs/DENSE'),
        args.task,
        args.input,
        args.step,
    )
    for layer in used:
        gate = f', gate {layer["gate"]:.3f}' if layer['gate'] != 1 else ''
        print(f'{layer["stack"]} layer {layer["layer"]}: expert {layer["expert"]}{gate}')


def report(args):
    from mtpt import report as module

    print(module.write(_needed(args.workdir, 'workdir', 'runs/NAME')))


def tasks(args):
    from mtpt import inspect_tasks
    from mtpt.flags import VERB_FLAGS

    given = {name: getattr(args, name) for name in VERB_FLAGS['tasks']}
    return inspect_tasks.main(args.run, args.words or ['list'], given)


def cache(args):
    from mtpt import run
    from mtpt.data.runners import RunnerConfig

    local = args.runner == 'local'
    workers = args.workers if args.workers is not None else 0 if local else 1
    run.build_cache(
        args.run,
        _needed(args.mixture, 'mixture', 'NAME'),
        _needed(args.out, 'out', 'DIR'),
        RunnerConfig(args.runner, workers, args.memory, args.beam_options),
    )


def convert(args):
    from mtpt import convert as module

    for note in module.convert(
        _needed(args.source, 'source', 'DIR'),
        _needed(args.out, 'out', 'DIR'),
        vocabulary=args.vocabulary,
        dtype=args.dtype,
        mlp=args.mlp,
        step=args.step,
    ):
        print(note)


def vocabulary(args):
    from mtpt import vocabulary as module
    from mtpt.tasks import sources

    corpus = _needed(args.corpus, 'corpus', 'FILE')
    out = _needed(args.out, 'out', 'FILE.model')
    lines = (example['text'] for example in sources.text(corpus).read('train'))
    module.train(lines, args.size, out)
    print(f'{out}: {module.open_vocabulary(out).size} ids with sentinels and mode tokens')


def sweep(args):
    from mtpt import sweep as module

    module.sweep(
        args.config_argument,
        args.overrides,
        _needed(args.over, 'over', 'section.key=a,b,c'),
        args.seeds,
        args.workdir or f'runs/sweep-{args.config_name}',
    )


def plan(args):
    from mtpt.flags import VERB_FLAGS
    from mtpt.plan import verb

    given = {name: getattr(args, name) for name in VERB_FLAGS['plan']}
    verb.main(args.config_argument, args.overrides, verb.Asked(**given))


def doctor(args):
    del args
    from mtpt import doctor as module

    return module.main()


def _joined(args, told):
    """Among the other processes of the verb, if there are any, that do what is told too."""
    from mtpt import hosts, record
    from mtpt.flags import HOST_FLAGS

    given = {name: getattr(args, name) for name in HOST_FLAGS}
    return hosts.joined(lambda: record.facts(told), **given)


def _needed(value, flag, example):
    if value is None:
        from mtpt.config import UserError

        raise UserError(f'--{flag} is missing; add --{flag}={example}')
    return value


def main(argv: list[str]) -> int:
    """Runs one verb; returns the exit status, of which `statuses` has the table."""
    debug = '--debug' in argv
    _hush()
    from mtpt.config import UserError

    try:
        # To train it means more than tracebacks.
        status = _said(argv if argv[:1] == ['train'] else [a for a in argv if a != '--debug'])
        sys.stdout.flush()  # here, where a reader that has gone is known
        return status
    except UserError as error:
        if debug:
            raise
        print(f'mtpt: {error}', file=sys.stderr)
        return getattr(error, 'status', statuses.BAD_INPUT)
    except statuses.Ended as ended:
        print(f'mtpt: {ended}', file=sys.stderr)
        return ended.status
    except KeyboardInterrupt:
        if debug:
            raise
        print('mtpt: interrupted; what was saved is whole', file=sys.stderr)
        return statuses.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 1
    except Exception as error:
        if debug:
            raise
        said = str(error).strip().partition('\n')[0]
        print(
            f'mtpt: {type(error).__name__}: {said} (this is a fault of mtpt or of a library; '
            'run again with --debug for the traceback)',
            file=sys.stderr,
        )
        return 1


def _said(argv: list[str]) -> int:
    """Does what the words say."""
    if not argv or argv[0] in ('-h', '--help', 'help'):
        width = max(map(len, VERBS))
        verbs = '\n'.join(f'  {v:{width}}  {t}' for v, t in VERBS.items())
        print(HELP.format(verbs=verbs, statuses=statuses.table()))
        return 0
    if argv[0] == '--version':
        from mtpt import __version__

        print(__version__)
        return 0
    from mtpt.config import UserError, nearest

    verb = argv[0]
    if verb not in VERBS:
        raise UserError(f'no verb {verb!r}; {nearest(verb, VERBS)}')
    from mtpt import flags, supervise

    if verb == 'train' and not {'-h', '--help'} & set(argv):
        restarts, argv = supervise.asked(argv)
        if restarts and '--debug' in argv:
            raise UserError('--debug ends where --restarts begins again; leave one of them out')
        if restarts:
            return supervise.supervise(argv, restarts)
    if verb in COMPUTING_VERBS:
        from mtpt.allocator import keep_freed_memory

        keep_freed_memory()
    args = flags.parse(verb, argv[1:], with_config=verb in CONFIG_VERBS)
    return 0 if args is None else globals()[verb](args) or 0


def _hush():
    """Keeps the libraries' start-up chatter off the terminal, unless the user asked for it."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
    os.environ.setdefault('GLOG_minloglevel', '3')


def entry():
    if sys.argv[1:2] == ['train']:  # whose log may lie on the disk that fills; it goes on
        from mtpt.files import Unfailing

        sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)
    try:
        status = main(sys.argv[1:])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException as error:  # of --debug
        from mtpt.config import UserError

        sys.excepthook(*sys.exc_info())
        plain = statuses.BAD_INPUT if isinstance(error, UserError) else statuses.FAULT
        status = statuses.INTERRUPTED if isinstance(error, KeyboardInterrupt) else plain
    if hosts := sys.modules.get('mtpt.hosts'):
        hosts.leave(status)  # where the others would be waited for in vain
    if status == statuses.INTERRUPTED:  # threads in the midst of a save or a step are left there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == '__main__':
    entry()
