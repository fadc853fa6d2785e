"""What recorded runs support: differences between variants, with intervals over users and over paired seeds.

    python -m benchmarks.claims          writes benchmarks/results/claims.json

over_users: recorded paired bootstrap, null where it was not recorded. over_seeds: paired t-interval over the seeds that
both variants have. over_fits: null, as every study trained its rankers on one fit of each catalog.
"""

from benchmarks import RESULTS
from sidrec.io.files import read_json, write_json
from sidrec.study.intervals import BOOTSTRAP_FILE, paired_interval
from sidrec.study.results import RUNS_FILE, ResultTable, RunResult

CLAIMS = (  # study, data set, variant, reference
    ("sid_coord_beauty", "beauty", "sid_coord", "hid_only"),
    ("sid_coord_beauty", "beauty", "sid_coord", "sid_only"),
    ("sid_coord_beauty", "beauty", "sid_coord", "without_multi_resolution"),
    ("sid_coord_beauty", "beauty", "sid_coord", "without_gate"),
    ("sid_coord_beauty", "beauty", "sid_coord", "without_alignment"),
    ("sid_coord_movielens", "movielens", "sid_coord", "hid_only"),
    ("sid_coord_movielens", "movielens", "sid_coord", "sid_only"),
    ("rivals_beauty", "dlrm", "sid_coord", "sid_only"),
    ("rivals_movielens", "ppnet", "sid_coord_residual", "hid_only"),
    ("rivals_movielens", "ppnet", "sid_coord_residual", "sid_only"),
    ("learners_beauty", "beauty", "adasid", "rq_kmeans"),
)
METRICS = (("AUC", "all", "auc"), ("GAUC", "all", "gauc"), ("tail AUC", "tail", "auc"), ("cold AUC", "cold", "auc"))


def main() -> None:
    """Computes every claim from the recorded results and writes claims.json."""
    write_json(RESULTS / "claims.json", [_claim(*claim) for claim in CLAIMS])


def _claim(study: str, dataset: str, variant: str, reference: str) -> dict[str, object]:
    folder = RESULTS / study
    runs = ResultTable(folder / RUNS_FILE, ("dataset", "variant", "seed"), RunResult).read().values()
    by_seed = {
        name: {
            run["seed"]: run["metrics"]["test"] for run in runs if (run["dataset"], run["variant"]) == (dataset, name)
        }
        for name in (variant, reference)
    }
    seeds = sorted(by_seed[variant].keys() & by_seed[reference].keys())
    recorded = read_json(folder / dataset / BOOTSTRAP_FILE, "a bootstrap")["differences"]
    over_users = recorded.get(reference, {}).get(variant, {})
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
    return found


if __name__ == "__main__":
    main()
