"""A PySpark job: raw clicks in, a log that `sidrec prep adopt` accepts out.

    spark-submit examples/spark_log.py clicks.parquet data/clicks --validation-from 2024-05-08 --test-from 2024-05-09
    sidrec prep adopt data/clicks

CLICKS has the columns user, item, device (text), time (timestamp) and clicked (0 or 1), one row per impression. Nothing
here runs in a single partition, and no task collects more of a user than two histories' length.
"""

import argparse
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, SparkSession, Window, WindowSpec
from pyspark.sql import functions as F  # noqa: N812

DAY = 86_400
RECENT_DAYS = 7
PART_BITS = 33  # monotonically_increasing_id: partition number above, row number below


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clicks")
    parser.add_argument("out")
    parser.add_argument("--validation-from", required=True, help="first day of validation, such as 2024-05-08 (UTC)")
    parser.add_argument("--test-from", required=True, help="first day of test")
    parser.add_argument("--history", type=int, default=20, help="longest history")
    parser.add_argument("--files", type=int, default=8, help="files of each split")
    flags = parser.parse_args(argv)
    spark = SparkSession.builder.appName("sidrec log").config("spark.sql.session.timeZone", "UTC").getOrCreate()

    clicks = spark.read.parquet(flags.clicks)
    events = clicks.select(
        F.col("user"),
        F.col("item"),
        F.coalesce(F.col("device"), F.lit("")).alias("device"),
        F.col("time").cast("timestamp").cast("bigint").alias("timestamp"),  # whole seconds since 1970
        F.col("clicked").cast("bigint").alias("label"),
    )
    for source, column in (("user", "user_id"), ("item", "item_id"), ("device", "cat_device")):
        ids = numbered(events.select(F.col(source).alias("source_id")).where("source_id <> ''").distinct())
        save(ids.orderBy("id"), f"{flags.out}/ids/{column}")  # becomes ids/COLUMN.parquet
        joined = events.join(ids, events[source] == ids["source_id"], "left").drop("source_id", source)
        events = joined.withColumn(column, F.coalesce("id", F.lit(0))).drop("id")  # 0: unknown
        if column == "item_id":
            items = ids.select(F.col("id").alias("item_id"), "source_id")
            save(items.orderBy("item_id"), f"{flags.out}/items")  # becomes items.parquet, with train_impressions

    rows = contract(with_histories(with_counts(events), flags.history))
    cuts = [F.unix_timestamp(F.lit(day), "yyyy-MM-dd") for day in (flags.validation_from, flags.test_from)]
    time = F.col("timestamp")
    save_split(rows.where(time < cuts[0]), f"{flags.out}/log/train", flags.files)
    save_split(rows.where((time >= cuts[0]) & (time < cuts[1])), f"{flags.out}/log/validation", flags.files)
    save_split(rows.where(time >= cuts[1]), f"{flags.out}/log/test", flags.files)
    spark.stop()


def numbered(values: DataFrame) -> DataFrame:
    """Adds `id`, numbers from 1 up without gaps, in the order of source_id.

    A row_number() over all rows would move them to one partition. Instead, each partition numbers its own rows, and
    begins where the partitions before it end. Later days: leave out what an earlier map has, and begin after its end.
    """
    parts = values.repartitionByRange("source_id").sortWithinPartitions("source_id")
    parts = parts.withColumn("place", F.monotonically_increasing_id()).localCheckpoint()  # the partitions stay
    part, row = F.shiftright("place", PART_BITS), F.col("place").bitwiseAND((1 << PART_BITS) - 1)
    sizes = parts.groupBy(part.alias("part")).count().orderBy("part").collect()  # a number for each partition
    starts, begin = [], 1
    for size in sizes:
        starts += [F.lit(size["part"]), F.lit(begin)]
        begin += size["count"]
    first = F.create_map(*starts)[part] if starts else F.lit(1)
    return parts.select("source_id", (first + row).cast("bigint").alias("id"))


def before(key: str, seconds: int = 1) -> WindowSpec:
    """All rows of a key that are at least so many seconds older.

    RANGE, not ROWS: rows of the same second must not see each other. And it ends one second before the row, as a frame
    that ends at the current row counts the row itself: the label would be in its own features.
    """
    return Window.partitionBy(key).orderBy("timestamp").rangeBetween(Window.unboundedPreceding, -seconds)


def with_counts(events: DataFrame) -> DataFrame:
    """Adds counts of the item and of the user as of each row.

    A window of recent days is the difference of two counts from the beginning, which Spark computes in one pass. It
    would add up a sliding frame anew for every row.
    """

    def count(key: str, what: Column, seconds: int = 1) -> Column:
        return F.coalesce(F.sum(what).over(before(key, seconds)), F.lit(0))

    one, label, old = F.lit(1), F.col("label"), RECENT_DAYS * DAY + 1
    return (
        events.withColumn("stat_exposures", count("item_id", one))
        .withColumn("stat_clicks", count("item_id", label))
        .withColumn("stat_exposures_recent", F.col("stat_exposures") - count("item_id", one, old))
        .withColumn("stat_clicks_recent", F.col("stat_clicks") - count("item_id", label, old))
        .withColumn("user_rows", count("user_id", one))
        .withColumn("liked", count("user_id", label))
        .withColumn("int_user_events", F.log1p("user_rows"))
        .withColumn("int_user_click_rate", (F.col("liked") + 1) / (F.col("user_rows") + 2))
    )


def with_histories(rows: DataFrame, length: int) -> DataFrame:
    """Adds the user's latest `length` positive items before each row, oldest first. `liked` counts all of them.

    Positives are packed once into chunks of `length` items. The history of a row that comes after n positives ends in
    chunk (n - 1) / length and begins in the chunk before it, so two joins are enough for any number of positives.
    """
    order = Window.partitionBy("user_id").orderBy("timestamp", "item_id")
    positives = rows.where("label = 1 and item_id > 0").withColumn("n", F.row_number().over(order) - 1)
    packed = F.array_sort(F.collect_list(F.struct("n", "item_id")))
    chunks = positives.groupBy("user_id", F.expr(f"n div {length}").alias("chunk")).agg(packed["item_id"].alias("ids"))
    none = F.array().cast("array<bigint>")
    last = F.expr(f"(liked - 1) div {length}")
    rows = rows.withColumn("chunk", F.when(F.col("liked") > 0, last))  # null, and so no match, without positives
    latest = chunks.withColumnRenamed("ids", "latest")
    older = chunks.select("user_id", (F.col("chunk") + 1).alias("chunk"), F.col("ids").alias("older"))
    rows = rows.join(latest, ["user_id", "chunk"], "left").join(older, ["user_id", "chunk"], "left")
    taken = F.slice("latest", F.lit(1), (F.col("liked") - F.col("chunk") * length).cast("int"))
    both = F.concat(F.coalesce("older", none), F.coalesce(taken, none))
    begin = F.greatest(F.size(both) - length, F.lit(0)) + 1
    return rows.withColumn("history", F.slice(both, begin, F.lit(length)))


def contract(rows: DataFrame) -> DataFrame:
    """The columns of the log, with the types that sidrec reads: bigint ids, float numbers, array<bigint> histories."""
    ids = ["timestamp", "user_id", "item_id", "cat_device"]
    numbers = ["label", *(name for name in rows.columns if name.startswith(("int_", "stat_")))]
    lists = [F.col("history").cast("array<bigint>")]
    return rows.select(*(F.col(x).cast("bigint") for x in ids), *(F.col(x).cast("float") for x in numbers), *lists)


def save_split(rows: DataFrame, folder: str, files: int) -> None:
    """Files that follow one another in time, each sorted by time. Rows of one second end up in one file."""
    order = ["timestamp", "user_id", "item_id"]
    save(rows.repartitionByRange(files, "timestamp").sortWithinPartitions(*order), folder)


def save(rows: DataFrame, folder: str) -> None:
    """Writes a folder that does not exist yet. Small row groups: the reader holds one for each of its lanes."""
    rows.write.option("parquet.block.size", 16 << 20).parquet(folder)


if __name__ == "__main__":
    main()
