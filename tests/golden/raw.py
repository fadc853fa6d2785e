"""Raw logs in the layouts that data_prep reads, a few hundred rows each, the same on every machine."""

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np

DAY = 86_400
PEOPLE, PRODUCTS = 24, 30


def write_raw(folder: Path) -> None:
    """Writes FOLDER/{movielens, amazon, interactions.csv, items.csv, vectors.npy, criteo.txt}."""
    folder.mkdir()
    _movielens(folder / "movielens", random.Random(1))
    _amazon(folder / "amazon", random.Random(2))
    _interactions(folder, random.Random(3))
    chance = random.Random(4)
    (folder / "criteo.txt").write_text("".join(_criteo_line(chance) for _ in range(900)))
    grid = np.arange(60 * 4, dtype=np.float32).reshape(60, 4)
    np.save(folder / "vectors.npy", grid % 7 - grid % 5 + 0.5)


def _movielens(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    genres = ("Comedy", "Drama", "Action|Drama", "(no genres listed)")
    movies = [(10 + 3 * n, f"Film {n}, The ({1990 + n})", genres[n % len(genres)]) for n in range(PRODUCTS)]
    _write_csv(folder / "movies.csv", [("movieId", "title", "genres"), *movies])
    ratings = [
        (
            chance.randint(1, PEOPLE),
            chance.choice(movies)[0],
            chance.randint(1, 10) / 2,
            DAY * day + chance.randint(0, 99),
        )
        for day in range(300)
    ]
    _write_csv(folder / "ratings.csv", [("userId", "movieId", "rating", "timestamp"), *ratings])


def _amazon(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    names = [f"B{n:03}" for n in range(PRODUCTS)]
    reviews = [
        {
            "reviewerID": f"A{chance.randint(1, PEOPLE)}",
            "asin": chance.choice(names),
            "overall": 5.0,
            "unixReviewTime": day * DAY,
        }
        for day in range(1, 200)
    ]
    products = [
        {"asin": name, "title": f"It's {name}", "brand": f"Brand {n % 4}", "categories": [["Beauty", f"Kind {n % 3}"]]}
        for n, name in enumerate(names)
    ]
    _write_gz(folder / "reviews_Toys_5.json.gz", [json.dumps(review) for review in reviews])
    _write_gz(folder / "meta_Toys.json.gz", [repr(product) for product in products])  # Python literals, as published


def _interactions(folder: Path, chance: random.Random) -> None:
    things = [f"thing {n}" for n in range(PRODUCTS)]
    rows = [
        (f"u{chance.randint(1, PEOPLE)}", chance.choice(things), DAY * day * 1000, chance.randint(0, 1), f"d{day % 3}")
        for day in range(250)
    ]
    _write_csv(folder / "interactions.csv", [("who", "what", "when", "bought", "device"), *rows])
    described = [(thing, f"A {thing}", f"shelf {n % 5}") for n, thing in enumerate(things)]
    _write_csv(folder / "items.csv", [("what", "name", "shelf"), *described])


def _criteo_line(chance: random.Random) -> str:
    dense = ["" if chance.random() < 0.2 else str(chance.randint(-2, 500)) for _ in range(13)]
    values = ["" if chance.random() < 0.1 else f"{_geometric(chance) * 2654435 * n % 2**32:08x}" for n in range(1, 27)]
    return "\t".join([str(int(chance.random() < 0.3)), *dense, *values]) + "\n"


def _geometric(chance: random.Random) -> int:
    value = 1
    while chance.random() > 0.08:
        value += 1
    return value


def _write_csv(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_gz(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0))
