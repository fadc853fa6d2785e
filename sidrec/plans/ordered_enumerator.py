"""TorchRec's options of a table in an order that every process finds alike."""

from typing import Any

from torchrec.distributed.planner.enumerators import EmbeddingEnumerator


class OrderedEnumerator(EmbeddingEnumerator):
    """TorchRec takes sharding types and kernels out of sets of strings, whose order Python draws anew in each process,
    and its planner takes the first of equally cheap options: the same recipe, started again, would get another plan,
    and with it sums in another order."""

    def _filter_sharding_types(self, *arguments: Any, **named: Any) -> list[str]:
        return sorted(
            super()._filter_sharding_types(*arguments, **named), reverse=True
        )  # table_wise before column_wise

    def _filter_compute_kernels(self, *arguments: Any, **named: Any) -> list[str]:
        return sorted(super()._filter_compute_kernels(*arguments, **named), reverse=True)  # fused before dense
