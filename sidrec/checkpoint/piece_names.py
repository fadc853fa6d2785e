"""The names of a model's pieces, which no plan decides.

model/NAME              weights and buffers, named as in the state_dict; a table is [rows, width] however it is sharded
optimizer/NAME/sum      element-wise Adagrad of a table, [rows, width]
optimizer/NAME/row_sum  row-wise Adagrad of a table, [rows, S] for S shards of its columns; 1 where they are not cut
optimizer/NAME/STATE    what torch's optimizer keeps of a dense layer
ranks/RANK/...          what belongs to one rank
"""

MODEL, OPTIMIZER, RANKS = "model", "optimizer", "ranks"
SUM, ROW_SUM = "sum", "row_sum"


def is_table(name: str) -> bool:
    """Whether a parameter is an embedding table."""
    return ".embedding_bags." in name


def table_of(name: str) -> str:
    """The table that a parameter is: items.embedding_bags.hid.weight -> hid."""
    return name.split(".")[-2]


def parameter_of(key: str) -> str:
    """The parameter that a piece of an optimizer's state belongs to: optimizer/NAME/STATE -> NAME."""
    return key.split("/")[1]
