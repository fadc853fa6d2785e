"""The train component with `sidrec.doctor.probe` in place of `sidrec.train`: real ranks that sum, without data."""

from torchx import specs

from launch import components


def probe(ranks: int) -> specs.AppDef:
    """Sums over ranks.

    Args:
        ranks: processes
    """
    app = components.train("all_reduce", ranks=ranks)
    app.roles[0].args[1] = app.roles[0].args[1].replace("-m sidrec.train", "-m sidrec.doctor.probe")
    return app
