"""The train component with the doctor's all-reduce probe in place of `sidrec.train`: real ranks, no data."""

from torchx import specs

from launch import components


def probe(ranks: int) -> specs.AppDef:
    """Sums over ranks.

    Args:
        ranks: processes
    """
    app = components.train("all_reduce", ranks=ranks)
    app.roles[0].args[1] = app.roles[0].args[1].replace("-m sidrec.train", "-m sidrec.doctor.machine_checks")
    return app
