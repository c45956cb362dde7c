"""The command ``tad``: train, go on, evaluate, distil, plot, export, and say what there is.

This module imports only the standard library; a command imports what it needs.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmarl_tad.cli.words import Words

_MOST_LINES = 4

HELP = """tad: end-to-end vectorised training for cooperative multi-agent reinforcement learning

  tad list [NAME]                       methods, environments, or the fields of one
  tad run METHOD ENV... key=value...    train; several values, lr=1e-4,3e-4, are a sweep
  tad resume DIR                        go on where a run stopped
  tad eval DIR                          evaluate again, on more episodes or elsewhere
  tad distill DIR out=DIR2              decentralised students of a run
  tad record DIR out=DIR2               a dataset of a run's episodes, or of random ones
  tad data info|mix|split DIR...        what datasets hold; mixtures, and parts by return
  tad plot DIR...                       learning curves of runs
  tad play ENV --policy P out=F.gif     an episode as an animated picture
  tad export DIR path=DIR2              a policy for use without this package
  tad doctor                            what this machine offers, and whether jax can use it

tad COMMAND --help tells more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 2 for what was asked wrongly, 1 for what failed, 128 + a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminable(), _short_warnings():
            return _command(words)
    except ValueError as error:
        if not _ours(error):
            raise
        return _told(str(error), 2)
    except BrokenPipeError:  # `tad list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _told(str(error), 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    name, *rest = words
    if name not in _COMMANDS:
        raise ValueError(_unknown(name))
    action, flags = _COMMANDS[name]
    if "--help" in rest or "-h" in rest:
        print(_help(action))
        return 0
    from jaxmarl_tad.cli import words as grammar

    asked = grammar.split(rest, flags)
    if "--distributed" in asked.flags:
        _join(asked.flags["--distributed"])
    return action(asked)


def _join(place: str) -> None:
    """Become one of the processes of a job that is spread over hosts."""
    import jax

    parts = place.split(",") if place else []
    if len(parts) not in (0, 3) or not all(part.isdigit() for part in parts[1:]):
        raise ValueError(f"--distributed={place} is not valid; expected HOST:PORT,PROCESSES,NUMBER.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given: Any = (parts[0], int(parts[1]), int(parts[2])) if parts else ()
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes do not find one another: {error}") from error


def _unknown(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of: {', '.join(_COMMANDS)}."
    return f"unknown command {name!r}; {hint}"


def _help(action: Callable[..., int]) -> str:
    import inspect

    return inspect.getdoc(action) or ""


# --- list -----------------------------------------------------------------------------------------


def list_(words: "Words") -> int:
    """tad list [NAME].

    Without a name: all methods and all environments, and which of them go together. With the name of
    a method or an environment: its fields, their types and defaults, and what a sweep over each does.
    With a part of names: the environments that have it.
    """
    from jaxmarl_tad.cli import listing

    _no_keys(words, "list")
    _at_most(words, 1, "list")
    print(listing.fields(words.names[0]) if words.names else listing.everything())
    return 0


# --- run ------------------------------------------------------------------------------------------


def run(words: "Words") -> int:
    """tad run METHOD ENV... key=value... [@DIR/config.json] [--plan[=memory]] [--shard i/n].

      tad run ippo hallway length=2,3 lr=1e-4,3e-4 seeds=8 out=runs/first
      tad run omiga data=data/hallway alpha=0.1,1
      tad run pipeline tad_ppo hallway distill.memory=gru

    A method that learns from recorded experience takes data=DIR (several make programs); it is
    evaluated in the environment that is named, by default where the data was recorded. limit=BYTES
    is how much of it is held in memory; of a larger one, another part is learned from after each
    evaluation.

    A key is a field of the method's config, a parameter of the environment, or one of: seeds,
    evaluations, episodes, prng, out, shard_over, wandb, wandb_members, save_seconds, keep. What both
    config and environment know is the config's; the environment's is written env.KEY. `tad list NAME`
    shows the fields. The order of keys never matters.

    Several values are a sweep: a number becomes an axis of one vmapped program; a field that is part
    of the program, or changes the environment's sizes, makes more programs. Tuples are written
    hidden=64x64, seeds=8 means 0 to 7, and seeds=3,5 these two.

    With one program the run's folder is `out`, with more it is `out/NAME`; out=none writes nothing.
    What is finished in it is skipped, what is not goes on.

      @DIR/config.json   start from the settings of an earlier run
      --plan             print programs, members and steps; run nothing
      --plan=memory      also compile the largest program and tell its memory
      --shard i/n        do only every n-th program from the i-th on; all n share `out`
      --distributed      one of the processes of a job over several hosts, which SLURM, MPI or a Cloud
                         TPU tell of; or --distributed=HOST:PORT,PROCESSES,NUMBER
      pipeline METHOD    train a teacher, then distil it: `out`/teacher and `out`/students; keys of
                         the distillation are written distill.KEY
    """
    from jaxmarl_tad.cli import locks, work
    from jaxmarl_tad.cli import words as grammar

    pipeline = words.names[:1] == ["pipeline"]
    asked = words._replace(names=words.names[1:]) if pipeline else words
    own, lesson = _without(asked.pairs, "distill.") if pipeline else (asked.pairs, {})
    programs = grammar.programs(asked._replace(pairs=own))
    lessons = grammar.lessons(lesson) if pipeline else [None]
    driving = grammar.driving(own)
    mine = locks.shard(programs, words.flags.get("--shard"))
    jobs = [(program.name, work.prepared(program)) for program in mine]
    if "--plan" in words.flags:
        from jaxmarl_tad.cli import listing

        print(listing.plan(jobs, lessons[0], words.flags["--plan"]))
        return 0
    several = len(programs) > 1 or pipeline
    out = own.get("out")
    if "--shard" in words.flags and out in (None, "none"):
        raise ValueError("--shard needs out=DIR, the folder that all shards share.")
    chains = [
        work.chain(job, name if len(programs) > 1 else "", lessons[0], driving) for name, job in jobs
    ]
    if out == "none":
        return work.in_memory(chains)
    folder = work.default_folder(programs[0]) if out is None else pathlib.Path(out)
    return work.in_folder(chains, folder, words if several else None)


def resume(words: "Words") -> int:
    """tad resume DIR [--shard i/n] [--distributed] [save_seconds=...] [shard_over=...] [wandb=...].

    Go on with the run in DIR from its newest checkpoint, or with all runs of a folder of several. What
    is finished is left alone.
    """
    from jaxmarl_tad.cli import words as grammar
    from jaxmarl_tad.cli import work

    there = _one_folder(words, "resume")
    grammar.check_keys(words.pairs, set(grammar.DRIVING) - {"out"}, "tad resume")
    recorded = work.recorded(there)
    if recorded is not None:
        known = grammar.split(recorded, _COMMANDS["run"][1])
        pairs = {**known.pairs, **words.pairs, "out": str(there)}
        return run(known._replace(pairs=pairs, flags=words.flags))
    return work.resume(there, grammar.driving(words.pairs), words.flags.get("--shard"))


def eval_(words: "Words") -> int:
    """tad eval DIR [episodes=1024] [env=...] [seed=0].

    Act greedily on so many whole episodes with every member of a run, or of all runs of a folder,
    where it was trained or in another environment of the same sizes. Writes nothing.
    """
    from jaxmarl_tad.cli import outcomes, work
    from jaxmarl_tad.cli import words as grammar

    hints = {"episodes": int, "seed": int, "env": str}
    there = _one_folder(words, "eval")
    grammar.check_keys(words.pairs, hints, "tad eval")
    given = {key: grammar.read(key, text, hints[key]) for key, text in words.pairs.items()}
    found = [work.evaluated(path, **given) for path in outcomes.runs(there)]
    print(outcomes.table(found))
    return 0


def distill(words: "Words") -> int:
    """tad distill DIR key=value... [out=DIR2].

      tad distill runs/teacher memory=gru out=runs/students

    Decentralised students of every member of the run in DIR. Keys are those of the distillation
    (`tad list distill`), seed, evaluations, episodes, prng, env, out, shard_over and save_seconds.
    Several values of a key make several runs, `out`/NAME.
    """
    from jaxmarl_tad import folder
    from jaxmarl_tad.cli import words as grammar
    from jaxmarl_tad.cli import work

    there = _one_folder(words, "distill")
    folder.about(there)
    lessons = grammar.lessons(words.pairs)
    out, driving = words.pairs.get("out"), grammar.driving(words.pairs)
    many = len(lessons) > 1
    chains = [work.taught(there, lesson, lesson.name if many else "", driving) for lesson in lessons]
    if out == "none":
        return work.in_memory(chains)
    default = work.numbered(f"students-{there.resolve().name}")
    return work.in_folder(chains, pathlib.Path(out) if out else default, None, many=many)


def record(words: "Words") -> int:
    """tad record DIR|random [ENV] [out=DIR2] key=value...

      tad record runs/first explore=0.1 episodes=5000 out=data/medium label=medium
      tad record random hallway out=data/random
      tad record runs/first checkpoint=all explore=sample out=data/replay label=medium-replay

    Whole episodes of a run's policy, or of uniform random legal actions, as a dataset. A recording that
    was stopped goes on when the same is asked for again; a finished one is never written over.

      episodes=1000      how many in all
      explore=greedy     or sample, as it explored while it learned; or a number: the chance of a random
                         action, or the deviation of normal noise in units of half the actions' range
      member=best        or all members for equal shares, or the number of one
      checkpoint=newest  or all that the run kept (tad run ... keep=10 save_seconds=0), or one's number
      env=ENV            where to act, unless where it was trained
      seed=0 label=TEXT
    """
    from jaxmarl_tad.cli import datasets

    _at_most(words, 2, "record")
    if not words.names:
        raise ValueError("tad record needs a run or 'random': tad record DIR out=DIR2.")
    return datasets.record(words)


def data_(words: "Words") -> int:
    """tad data info DIR... [out=figures], tad data mix DIR... out=DIR2, tad data split DIR out=DIR2.

    info    counts, returns, coverage (unique pairs of state and joint action as a share of steps),
            and for few discrete actions their entropy and total correlation given the state; draws
            the returns as PNG and CSV into DIR/figures, or figures/ for several
    mix     the episodes of all; or shares=0.5,0.5 of them, episodes=1000 in all, with seed=0 and
            label=TEXT
    split   by return into parts=3 of equal numbers of episodes, or at=5,10; as DIR2/poor,
            DIR2/medium and DIR2/good if they are three
    """
    from jaxmarl_tad.cli import datasets

    actions = {"info": datasets.info, "mix": datasets.mix, "split": datasets.split}
    if not words.names or words.names[0] not in actions:
        import difflib

        close = difflib.get_close_matches(words.names[0], actions, n=1) if words.names else []
        hint = f"did you mean {close[0]!r}?" if close else "expected info, mix or split."
        given = f"has no action {words.names[0]!r}" if words.names else "needs an action"
        raise ValueError(f"tad data {given}; {hint}")
    if len(words.names) == 1:
        raise ValueError(f"tad data {words.names[0]} needs a folder: tad data {words.names[0]} DIR.")
    _at_most(words, 2 if words.names[0] == "split" else len(words.names), "data split")
    return actions[words.names[0]](words)


def plot(words: "Words") -> int:
    """tad plot DIR... [metric=return] [out=figures].

    Learning curves of all runs in the folders: one panel per environment, one line with its bootstrap
    interval per setting; as PNG and CSV in DIR/figures, or in figures/ for several folders.
    """
    from jaxmarl_tad.cli import outcomes
    from jaxmarl_tad.cli import words as grammar

    if not words.names:
        raise ValueError("tad plot needs a folder: tad plot DIR.")
    grammar.check_keys(words.pairs, ["metric", "out"], "tad plot")
    found = [outcomes.read(run) for there in words.names for run in outcomes.runs(there)]
    default = pathlib.Path(words.names[0]) if len(words.names) == 1 else pathlib.Path()
    figures = pathlib.Path(words.pairs.get("out") or default / "figures")
    drawn = outcomes.learning_curves(found, figures, words.pairs.get("metric", "return"))
    print(drawn, drawn.with_suffix(".csv"), sep="\n")
    return 0


def play(words: "Words") -> int:
    """tad play ENV [--policy random|heuristic|DIR] [out=FILE.gif] [seed=0] [member=best] [fps=6].

      tad play smax/3m --policy heuristic out=battle.gif
      tad play mpe/spread --policy runs/first out=spread.gif

    One episode as an animated picture, and its return. The policy draws legal actions at random, is the
    environment's own script, or is the greedy policy of a run in a folder that was trained on the same
    sizes: of the member with the highest final return, or of `member`. Parameters of the environment
    stand in its name, as in predator_prey/stag_hunt/size=5.
    """
    from jaxmarl_tad.cli import words as grammar
    from jaxmarl_tad.cli import work

    hints = {"out": str, "seed": int, "member": str, "fps": int}
    _at_most(words, 1, "play")
    if not words.names:
        raise ValueError("tad play needs an environment: tad play smax/3m --policy heuristic.")
    grammar.check_keys(words.pairs, hints, "tad play")
    given = {key: grammar.read(key, text, hints[key]) for key, text in words.pairs.items()}
    print(work.played(words.names[0], words.flags.get("--policy", "random"), **given))
    return 0


def export(words: "Words") -> int:
    """tad export DIR [member=best] [path=policy] [formats=jax,safetensors].

    The greedy policy of one member, by default the one with the highest final return, as files that
    can be used without this package.
    """
    import jaxmarl_tad as jt
    from jaxmarl_tad.cli import words as grammar

    there = _one_folder(words, "export")
    grammar.check_keys(words.pairs, ["member", "path", "formats"], "tad export")
    chosen = words.pairs.get("member", "best")
    member = None if chosen == "best" else grammar.read("member", chosen, int)
    given: dict[str, Any] = {"path": words.pairs.get("path", "policy/")}
    if "formats" in words.pairs:
        given["formats"] = tuple(grammar.values(words.pairs["formats"]))
    trained = jt.load(there)
    number = int(trained.final["return"].argmax()) if member is None else member
    print(jt.export(trained, member=number, **given))
    return 0


def doctor_(words: "Words") -> int:
    """tad doctor.

    Versions, devices, the cache of compiled programs, and how fast this machine multiplies.
    """
    from jaxmarl_tad.cli import doctor

    _no_keys(words, "doctor")
    _at_most(words, 0, "doctor")
    print(doctor.examine())
    return 0


_COMMANDS: dict[str, tuple[Callable[..., int], dict[str, bool]]] = {
    "list": (list_, {}),
    "run": (run, {"--plan": False, "--shard": True, "--distributed": False}),
    "resume": (resume, {"--shard": True, "--distributed": False}),
    "eval": (eval_, {}),
    "distill": (distill, {}),
    "record": (record, {}),
    "data": (data_, {}),
    "plot": (plot, {}),
    "play": (play, {"--policy": True}),
    "export": (export, {}),
    "doctor": (doctor_, {}),
}
"""What each command does, and its options: whether each needs a value."""


# --- what all commands share ----------------------------------------------------------------------


def _one_folder(words: "Words", command: str) -> pathlib.Path:
    _at_most(words, 1, command)
    if not words.names:
        raise ValueError(f"tad {command} needs a folder: tad {command} DIR.")
    return pathlib.Path(words.names[0])


def _at_most(words: "Words", count: int, command: str) -> None:
    if words.source is not None:
        raise ValueError(f"tad {command} takes no @file; that is for tad run.")
    if len(words.names) > count:
        raise ValueError(
            f"tad {command} has no use for {words.names[count]!r}; see tad {command} --help."
        )


def _no_keys(words: "Words", command: str) -> None:
    if words.pairs:
        raise ValueError(
            f"tad {command} takes no keys, so {next(iter(words.pairs))}=... has no meaning."
        )


def _without(pairs: dict[str, str], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Those keys that do not begin with the prefix, and, freed of it, those that do."""
    own = {key: text for key, text in pairs.items() if not key.startswith(prefix)}
    return own, {key.removeprefix(prefix): pairs[key] for key in pairs if key not in own}


def _told(text: str, code: int) -> int:
    """Say what is wrong in a few lines."""
    lines = text.strip().splitlines()[:_MOST_LINES]
    print("tad: " + "\n".join(lines), file=sys.stderr)
    return code


def _ours(error: BaseException) -> bool:
    """Whether an error was raised by this library, which then speaks to the user, and not below it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = "" if frame is None else str(frame.tb_frame.f_globals.get("__name__"))
    return module.partition(".")[0] in ("jaxmarl_tad", "tad_envs")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the process as an exception does, so that locks are given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings of one line, without the source line they come from."""

    def show(message: Any, *about: Any, **more: Any) -> None:
        print(f"tad: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
