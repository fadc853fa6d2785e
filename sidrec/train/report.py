"""What a finished run tells: metrics.json, a table, and whether the gate learned what it should."""

from sidrec.train.attention import attention_report
from sidrec.train.gate_report import gate_report
from sidrec.train.results import SplitMetrics, load_metrics, metrics_table, save_metrics, undefined
from sidrec.train.run_directory import RunDirectory


def report(run: RunDirectory, metrics: SplitMetrics) -> None:
    """Writes metrics.json and the gate's picture, and prints the table and what attention and gate came to.

    Splits that metrics.json has from before, and that are not among these, stay in it.
    """
    before = load_metrics(run.metrics) if run.metrics.exists() else {}
    save_metrics({**before, **metrics}, run.metrics)
    print(metrics_table(metrics))
    for line in undefined(metrics):
        print(line)
    for split in metrics:
        for sentence in (attention_report(run, split), gate_report(run, split)):
            if sentence:
                print(sentence)
    print(f"run directory: {run.path}", flush=True)
