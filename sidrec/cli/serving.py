"""`sidrec export | delta | score | serve | skew | shadow`: a run becomes a bundle, which scores files and requests.

Of these, `export` alone needs the stack of training. Functions import what they need when they are called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sidrec.command_line import PlaceArgument, Subcommands, describe, metavar, parse
from sidrec.errors import ConfigError
from sidrec.io.places import StorePath, local_path

EXPORT = describe(
    "Exports a trained run to a bundle, which scores rows and answers requests without torch. The bundle's scores are "
    "compared with the trained model's before it is put in use.",
    "sidrec export runs/shop/seed0 bundle",
    "sidrec export runs/shop/seed0 bundle --calibrate validation",
    "sidrec export runs/shop/seed0 bundle --data tomorrow --catalog tomorrow-sids",
    "sidrec export --use 3f09a1c2b4d5e6f7 bundle",
)


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how exactly."""

    paths: tyro.conf.Positional[Annotated[tuple[PlaceArgument, ...], metavar("[RUN] BUNDLE")]]
    """Run directory, and the bundle, a folder or a URI, which may hold earlier versions. With --use: the bundle
    alone."""
    store: Literal["f32", "f16", "int8"] = "f16"
    """Precision of the vectors of items and context columns."""
    checkpoint: Annotated[str | None, metavar("{newest,best,step-N}", "best if the run keeps one, else newest")] = None
    """Checkpoint to export."""
    tolerance: Annotated[float | None, metavar("LOGIT", "that of the precision")] = None
    """Largest difference of a logit from the trained model's."""
    rows: int = 50_000
    """Rows that are compared, at most; of the first split that the recipe evaluates."""
    calibrate: Annotated[str | None, metavar("SPLIT", "none")] = None
    """Split to fit calibrated probabilities on, which scorers give beside the model's own. Not one of training."""
    calibration: Literal["isotonic", "platt"] = "isotonic"
    """Map from logits to calibrated probabilities: free and monotone, or a slope and an intercept, for few rows."""
    data: Annotated[PlaceArgument | None, metavar("FOLDER", "the run's own")] = None
    """Data folder with items that came after the training. Its ids must be the run's and more: prepare it with
    --ids."""
    catalog: Annotated[PlaceArgument | None, metavar("CATALOG", "the run's own")] = None
    """With --data: the run's catalog, or one that `sidrec fit --extend` made from it."""
    use: Annotated[str | None, metavar("VERSION", "none")] = None
    """Puts an earlier version of the bundle in use again, and exports nothing."""


def export(argv: Sequence[str]) -> None:
    """Exports RUN to BUNDLE. Raises SidrecError."""
    options = parse(ExportOptions, argv, "sidrec export", EXPORT)
    if len(options.paths) != (1 if options.use else 2):
        expected = "a bundle, as --use exports no run" if options.use else "a run directory and a bundle"
        raise ConfigError(f"sidrec export: expected {expected}, got {len(options.paths)} paths")
    if options.catalog is not None and options.data is None:
        raise ConfigError("--catalog: expected --data with it, which names the folder with the items, got none")
    if options.use:
        from sidrec.serve.stored_bundles import use_in_store
        from sidrec.serve.versions import use

        if isinstance(bundle := options.paths[0], StorePath):
            use_in_store(bundle, options.use)
        else:
            use(bundle, options.use)
        print(f"{options.paths[0]}: version {options.use} is in use")
        return

    from sidrec.stack import require_stack

    require_stack()
    from sidrec.export.exporting import Wanted, export_run, export_to_store
    from sidrec.parallel.process_group import joined_ranks
    from sidrec.train.evaluate_run import OtherData

    run, bundle = local_path(options.paths[0], "sidrec export: RUN"), options.paths[1]
    other = None if options.data is None else OtherData(options.data, options.catalog)
    with joined_ranks() as ranks:
        if ranks.world > 1:
            raise ConfigError(
                f"sidrec export: expected one process, got {ranks.world} ranks; start it without torchrun"
            )
        wanted = Wanted(
            precision=options.store,
            tolerance=options.tolerance,
            checkpoint=options.checkpoint,
            rows=options.rows,
            calibrate=options.calibrate,
            calibration=options.calibration,
            other=other,
        )
        if isinstance(bundle, StorePath):
            made = export_to_store(run, bundle, wanted, ranks)
        else:
            made = export_run(run, bundle, wanted, ranks)
    print(f"{made.rows:,} rows of {made.split}: logits differ by at most {made.difference:.2g}")
    if made.calibrated:
        same = ", the rows that it was fitted on" if made.split == options.calibrate else ""
        print(f"calibrated on {options.calibrate}; on {made.split}{same}: {made.calibrated.text()}")
    print(f"{bundle}: version {made.version} is in use, {made.bytes:,} bytes")


DELTA = Subcommands(
    "sidrec delta",
    "Brings a new version to other copies of a bundle by what differs from an older one. Needs no torch.",
    {"make": "write what turns a version into the one in use", "apply": "make the new version of it, and use it"},
)
DELTA_MAKE = describe(
    "Writes what turns an older version of a bundle into the version in use: rows that differ, and whole files where "
    "that takes less.",
    "sidrec delta make bundle 3f09a1c2b4d5e6f7 delta",
)
DELTA_APPLY = describe(
    "Makes the new version of a delta in a bundle that has the older one, checks that each file is that of the export, "
    "and puts the version in use.",
    "sidrec delta apply delta bundle",
)


@dataclass(frozen=True)
class DeltaMakeOptions:
    """Which versions, and where to."""

    bundle: tyro.conf.Positional[Annotated[Path, metavar("BUNDLE")]]
    """Bundle with both versions."""
    old: tyro.conf.Positional[Annotated[str, metavar("OLD_VERSION")]]
    """Version that the other copies have."""
    out: tyro.conf.Positional[Annotated[Path, metavar("DELTA")]]
    """Folder to write; another delta there is replaced."""


@dataclass(frozen=True)
class DeltaApplyOptions:
    """What to apply, and where."""

    delta: tyro.conf.Positional[Annotated[Path, metavar("DELTA")]]
    """Folder that `sidrec delta make` wrote."""
    bundle: tyro.conf.Positional[Annotated[Path, metavar("BUNDLE")]]
    """Bundle that has the older version."""


def delta(argv: Sequence[str]) -> None:
    """Makes or applies a delta. Raises SidrecError."""
    command, words = DELTA.choose(argv)

    from sidrec.serve.bundle import Description
    from sidrec.serve.deltas import apply_delta, make_delta

    if command == "make":
        made = parse(DeltaMakeOptions, words, "sidrec delta make", DELTA_MAKE)
        found = make_delta(made.bundle, made.old, made.out)
        whole = sum(of.bytes for of in Description.read(made.out).files.values())
        print(f"{made.out}: {found.bytes:,} bytes turn version {found.old} into {found.new}, which has {whole:,}")
    else:
        applied = parse(DeltaApplyOptions, words, "sidrec delta apply", DELTA_APPLY)
        found = apply_delta(applied.delta, applied.bundle)
        print(f"{applied.bundle}: version {found.new} is in use")


SCORE = describe(
    "Scores rows of CSV or Parquet files, which hold ids as the raw log has them, with a bundle.",
    "sidrec score bundle tomorrow.parquet scores",
)


@dataclass(frozen=True)
class ScoreOptions:
    """What to score, and where to."""

    bundle: tyro.conf.Positional[Annotated[PlaceArgument, metavar("BUNDLE")]]
    """Bundle, as `sidrec export` makes it, or one of its versions."""
    rows: tyro.conf.Positional[Annotated[PlaceArgument, metavar("IN")]]
    """CSV or Parquet file, or a folder of them."""
    out: tyro.conf.Positional[Annotated[PlaceArgument, metavar("OUT")]]
    """Folder for the parts. The same command goes on after the last part that is there."""
    explain: bool = False
    """Add columns that say what each score comes from: gate, weight_GRANULARITY, alignment."""
    threads: int = 1
    """Threads of the graph."""


def score(argv: Sequence[str]) -> None:
    """Scores IN into OUT. Raises SidrecError."""
    options = parse(ScoreOptions, argv, "sidrec score", SCORE)

    from sidrec.io.progress import Bar
    from sidrec.serve.batch_scoring import Input, score_files
    from sidrec.serve.bundle import Bundle
    from sidrec.serve.scorer import Model

    model = Model(Bundle(options.bundle), options.threads)
    with Bar(total=Input.of(options.rows).rows, desc="scoring", unit=" rows", unit_scale=True) as bar:
        found = score_files(model, options.rows, options.out, bar.update, explain=options.explain)
    unknown = f"{found.unknown_items:,} on unknown items, {found.unknown_users:,} of unknown users"
    print(f"{options.out}: {found.rows:,} rows in {found.parts} parts, version {model.version}; {unknown}")


SERVE = describe(
    "Answers requests over HTTP by the Open Inference Protocol, version 2, until SIGTERM. A new version of the bundle "
    "is taken up without a pause.",
    "sidrec serve bundle --port 8080 --workers 4",
)


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and how."""

    bundle: tyro.conf.Positional[Annotated[PlaceArgument, metavar("BUNDLE")]]
    """Bundle, as `sidrec export` makes it."""
    name: str = "sidrec"
    """Name of the model in URLs."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine."""
    port: int = 8080
    """Port to listen on."""
    workers: int = 2
    """Threads that score."""
    waiting: int = 256
    """Most requests that wait for a thread; more are refused with status 503."""
    most_candidates: int = 10_000
    """Most candidates of a request."""
    most_body_bytes: int = 8 << 20
    """Most bytes of a request."""
    reload_seconds: float = 1.0
    """Time between two looks for a new version; 0: never."""
    feature_log: Annotated[Path | None, metavar("FOLDER", "none")] = None
    """Folder for a log of what requests were scored with, for `sidrec skew`. A full disk fails no request."""
    feature_log_share: float = 0.01
    """Share of the requests that the log holds, drawn by a hash of X-Request-Id."""


def serve(argv: Sequence[str]) -> None:
    """Serves BUNDLE. Raises SidrecError."""
    options = parse(ServeOptions, argv, "sidrec serve", SERVE)

    from sidrec.serve.protocol import Limits
    from sidrec.serve.scorer import Scorer
    from sidrec.serve.server import Settings
    from sidrec.serve.server import serve as serve_until_ended

    settings = Settings(
        name=options.name,
        host=options.host,
        port=options.port,
        workers=options.workers,
        waiting=options.waiting,
        reload_seconds=options.reload_seconds,
        limits=Limits(candidates=options.most_candidates, body=options.most_body_bytes),
        feature_log=options.feature_log,
        feature_log_share=options.feature_log_share,
    )
    serve_until_ended(Scorer(options.bundle), settings)


SKEW = describe(
    "Compares what requests were scored with (the log of `sidrec serve --feature-log`) with rows that were prepared "
    "for the same events: every column, and the score. Exit status 1 if one differs.",
    "sidrec skew bundle features prepared.parquet",
)


@dataclass(frozen=True)
class SkewOptions:
    """What to compare."""

    bundle: tyro.conf.Positional[Annotated[PlaceArgument, metavar("BUNDLE")]]
    """Bundle, or one of its versions. Scores are compared on the rows that this version answered."""
    feature_log: tyro.conf.Positional[Annotated[Path, metavar("FEATURE_LOG")]]
    """Folder that `sidrec serve --feature-log` wrote."""
    prepared: tyro.conf.Positional[Annotated[PlaceArgument, metavar("PREPARED")]]
    """Rows as `sidrec score` takes them, with a column `request`, or with user_id and timestamp, to match rows by."""
    most_differing: float = 0.01
    """Share of rows that may differ in a column."""


def skew(argv: Sequence[str]) -> int:
    """Compares FEATURE_LOG with PREPARED; returns 1 if a column differs. Raises SidrecError."""
    options = parse(SkewOptions, argv, "sidrec skew", SKEW)

    from sidrec.serve.bundle import Bundle
    from sidrec.serve.scorer import Model
    from sidrec.serve.skew import compare

    model = Model(Bundle(options.bundle), threads=1)
    found = compare(model, options.feature_log, options.prepared, options.most_differing)
    print(found.text())
    return 1 if found.differing else 0


SHADOW = describe(
    "Scores the same rows with two versions, and prints how scores and ranks would change.",
    "sidrec shadow bundle bundle/versions/3f09a1c2b4d5e6f7 tomorrow.parquet",
)


@dataclass(frozen=True)
class ShadowOptions:
    """What to compare, and on which rows."""

    bundle: tyro.conf.Positional[Annotated[PlaceArgument, metavar("BUNDLE")]]
    """Bundle, or one of its versions."""
    other: tyro.conf.Positional[Annotated[PlaceArgument, metavar("OTHER")]]
    """Another bundle or version, which would take its place."""
    rows: tyro.conf.Positional[Annotated[PlaceArgument, metavar("ROWS")]]
    """Rows that both can score, as `sidrec score` takes them."""
    exposures: Annotated[str | None, metavar("COLUMN", "BUNDLE's first statistic")] = None
    """Column of exposures in the rows, which separates head, tail and cold items."""
    top: int = 10
    """Best rows of a user that are compared."""
    json: Annotated[Path | None, metavar("FILE", "none")] = None
    """File to write the same numbers to."""


def shadow(argv: Sequence[str]) -> None:
    """Compares BUNDLE and OTHER on ROWS. Raises SidrecError."""
    options = parse(ShadowOptions, argv, "sidrec shadow", SHADOW)

    from sidrec.io.files import write_json
    from sidrec.serve.bundle import Bundle
    from sidrec.serve.scorer import Model
    from sidrec.serve.shadow import compare

    model, other = (Model(Bundle(path), threads=1) for path in (options.bundle, options.other))
    found = compare(model, other, options.rows, options.exposures, options.top)
    print(found.text())
    if options.json:
        write_json(options.json, found.as_json())
