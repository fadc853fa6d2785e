"""Differences between variants that recorded runs support, with intervals over users and over paired seeds.

    python -m benchmarks.claims          writes benchmarks/results/claims.json

over_users: the recorded paired bootstrap over users. over_seeds: paired t-interval over the seeds that both variants
have. over_fits: over fits of the catalog. An interval that cannot be computed is null, and `not_computed` says
why.
"""

from collections.abc import Mapping

from benchmarks import RESULTS
from sidrec.io.files import read_json, write_json
from sidrec.study.intervals import Difference, Differences, paired_interval
from sidrec.study.results import RUNS_FILE, run_table

CLAIMS = (  # study, data set, variant, reference
    ("learners_beauty", "beauty", "adasid", "rq_kmeans"),
    ("learners_levels_beauty", "beauty", "opq", "opq_pairs"),
    ("learners_levels_beauty", "beauty", "multi_vq", "multi_vq_pairs"),
    ("learners_levels_beauty", "beauty", "adc_sid", "adc_sid_pairs"),
    ("learners_levels_beauty", "beauty", "adc_sid_weights", "adc_sid_weights_pairs"),
    ("learners_levels_beauty", "beauty", "opq", "rq_kmeans"),
    ("learners_levels_beauty", "beauty", "mm_rqvae_released", "mm_rqvae"),
    ("learners_levels_beauty", "beauty", "mm_rqvae_released", "random"),
)
BOOTSTRAP_FILE = "bootstrap.json"
"""Recorded by earlier versions: a paired bootstrap over users, of a data set's runs."""
ONE_FIT = "every seed of the study trained on the same fit of each catalog"
NO_BOOTSTRAP = "the recorded bootstrap has neither variant as its reference, and predictions of users are not recorded"
METRICS = (("AUC", "all", "auc"), ("GAUC", "all", "gauc"), ("tail AUC", "tail", "auc"), ("cold AUC", "cold", "auc"))


def main() -> None:
    """Writes claims.json."""
    write_json(RESULTS / "claims.json", claims())


def claims() -> list[dict[str, object]]:
    """Every claim, computed from the recorded results."""
    return [_claim(*claim) for claim in CLAIMS]


def _claim(study: str, dataset: str, variant: str, reference: str) -> dict[str, object]:
    folder = RESULTS / study
    runs = run_table(folder / RUNS_FILE).read().values()
    by_seed = {
        name: {
            run["run"]: run["metrics"]["test"] for run in runs if (run["dataset"], run["variant"]) == (dataset, name)
        }
        for name in (variant, reference)
    }
    seeds = sorted(by_seed[variant].keys() & by_seed[reference].keys())
    recorded = read_json(folder / dataset / BOOTSTRAP_FILE, "a bootstrap")["differences"]
    over_users = difference_over_users(recorded, variant, reference)
    found: dict[str, object] = {"study": study, "dataset": dataset, "variant": variant, "reference": reference}
    found["seeds"] = seeds
    for title, items, metric in METRICS:
        values = [[by_seed[name][seed][items][metric] for seed in seeds] for name in (variant, reference)]
        known = [[value for value in of if value is not None] for of in values]
        complete = all(len(of) == len(seeds) for of in known)
        found[title] = {
            "over_users": over_users.get(items, {}).get(metric),
            "over_seeds": paired_interval(*known) if complete else None,
            "over_fits": None,
        }
    found["not_computed"] = {"over_fits": ONE_FIT} | ({} if over_users else {"over_users": NO_BOOTSTRAP})
    return found


def difference_over_users(
    recorded: Differences, variant: str, reference: str
) -> Mapping[str, Mapping[str, Difference | None]]:
    """Slice -> metric -> variant - reference; empty if the bootstrap has neither of them as its reference.

    A difference that is recorded the other way round is negated: the draws are the same.
    """
    if found := recorded.get(reference, {}).get(variant):
        return found
    return {
        items: {metric: _negated(of) for metric, of in metrics.items()}
        for items, metrics in recorded.get(variant, {}).get(reference, {}).items()
    }


def _negated(found: Difference | None) -> Difference | None:
    if found is None:
        return None
    return Difference(
        difference=-found["difference"], low=-found["high"], high=-found["low"], resamples=found["resamples"]
    )


if __name__ == "__main__":
    main()
