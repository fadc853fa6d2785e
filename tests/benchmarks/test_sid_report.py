"""The report on codes: what is fitted, what is skipped, its measures by hand, and the tables that come out."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.sid_report.__main__ import main
from benchmarks.sid_report.fits import (
    FitResult,
    additive_decoder,
    fit_results,
    load_sid_study,
    own_decoder,
    study_fits,
)
from sidrec.config import ConfigError
from sidrec.config.learners import RandomCodesConfig, ResidualKMeansConfig
from sidrec.sid.catalog import TOKENIZER, load_catalog
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.learners.random_codes import RandomCodes
from sidrec.sid.learners.registry import load_tokenizer
from sidrec.sid.tokenizer import SideInformation
from sidrec.study.results import ResultTable

ITEMS, TEXT, BEHAVIOR = 60, 4, 3
REPORT = ("report.md", "summary.json", "4x2.png", "4x2-curves.png")
STUDY: dict[str, Any] = {
    "data": "data",
    "dataset": "toy",
    "seeds": [0, 1],
    "settings": {"4x2": {"codebook_size": 4, "levels": 2}},
    "rows": {
        "random": {"label": "random codes", "reconstructs": "nothing", "tokenizer": {"learner": {"kind": "random"}}},
        "adc_sid": {
            "label": "ADC-SID",
            "reconstructs": "text and behaviour",
            "tokenizer": {
                "vectors": ["text", "behavior"],
                "learner": {"kind": "adc_sid", "training": {"epochs": 2, "batch_size": 32, "least_utilisation": 0}},
            },
            "sizes": {"4x2": {"codebook_size": 4, "shared": 1, "content": 1, "behavior": 1, "width": 4, "hidden": 8}},
        },
    },
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {"item_id": np.arange(1, ITEMS + 1)}
    for name, width in (("text", TEXT), ("behavior", BEHAVIOR)):
        values = random.normal(size=ITEMS * width).astype(np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    Path("data").mkdir()
    pq.write_table(pa.table(columns), "data/items.parquet")


def _run(*words: str, **changes: Any) -> int:
    Path("small.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return main([*words, "small.yaml", "--results", "results"])


def _results() -> ResultTable[FitResult]:
    return fit_results(Path("results"), load_sid_study(Path("small.yaml")))


def _finished() -> list[str]:
    """Fits since the last call, which marks them."""
    results = _results()
    found = {key: result for key, result in results.read().items() if "seen" not in result["conditions"]}
    for result in found.values():
        results.put({**result, "conditions": {**result["conditions"], "seen": 1}})
    return ["/".join(map(str, key)) for key in found]


def test_fits_are_recorded_skipped_and_tabulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("run") == 0
    assert len(_finished()) == 2 * 2
    file = Path("results/small/fits.parquet")
    rows = pq.read_table(file)
    lost = pc.and_(pc.equal(rows["row"], "random"), pc.equal(rows["seed"], 1))
    pq.write_table(rows.filter(pc.invert(lost)), file)
    assert _run("run") == 0
    assert _finished() == ["4x2/random/1"]
    text = capsys.readouterr().out
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ADC-SID")]
    assert lines[0][1] == "2", "seeds"
    assert len(lines[0][2].split()) == 3, "an entropy for each of three experts"
    assert float(lines[1][2].split()[0]) > 0, "ADC-SID's codes and weights stand for vectors"
    random = [line.split(" | ") for line in text.splitlines() if line.startswith("| random codes")]
    assert random[1][2] == "-", "random codes stand for no vector"
    folder = Path("results/small")
    assert {path.name for path in folder.iterdir()} == {"fits.parquet", *REPORT}
    assert json.loads((folder / "summary.json").read_text())["4x2"]["adc_sid"]["seeds"] == [0, 1]


def test_result_describes_the_catalog() -> None:
    assert _run("run") == 0
    result = _results().get("4x2", "adc_sid", 0)
    assert result is not None
    catalog = load_catalog(Path("data/catalogs/toy-adc_sid-4x2"))
    assert result["fingerprint"] == catalog.fingerprint
    assert result["codes"]["unique_prefixes"][-1] == len(np.unique(catalog.codes_NL, axis=0))
    assert len(result["curves"]["loss"]) == 2
    assert load_tokenizer(Path("data/catalogs/toy-adc_sid-4x2") / TOKENIZER)[0].codebook_sizes == (4, 4, 4)
    assert len(list(Path("data/catalogs").iterdir())) == 2, "catalogs of the first seed alone"


def test_changed_section_is_fitted_again() -> None:
    assert _run("run", seeds=[0]) == 0
    _finished()
    settings = {"4x2": {"codebook_size": 3, "levels": 2}}
    assert _run("run", seeds=[0], settings=settings) == 0
    assert _finished() == ["4x2/random/0"]


def test_failed_fit_does_not_stop_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    pairs_needed = {"label": "QuaSID", "reconstructs": "text", "tokenizer": {"learner": {"kind": "quasid"}}}
    with caplog.at_level(logging.ERROR):
        assert _run("run", seeds=[0], rows={"quasid": pairs_needed, "random": STUDY["rows"]["random"]}) == 1
    assert "4x2/quasid/seed0 failed" in caplog.text
    assert _finished() == ["4x2/random/0"]


def test_mistakes_are_named_before_any_fit(capsys: pytest.CaptureFixture[str]) -> None:
    rows = STUDY["rows"] | {"odd": {"label": "odd", "reconstructs": "", "tokenizer": {"learner": {"kind": "rqvea"}}}}
    assert _run("run", rows=rows) == 2
    assert "row odd, setting 4x2" in capsys.readouterr().err
    assert _run("run", "--setting", "8x8") == 2
    assert "expected one of ['4x2'], got '8x8'" in capsys.readouterr().err
    assert not _finished()


def test_unknown_setting_of_sizes_is_refused() -> None:
    row = STUDY["rows"]["adc_sid"] | {"sizes": {"5x5": {}}}
    Path("small.yaml").write_text(yaml.safe_dump(STUDY | {"rows": {"adc_sid": row}}))
    with pytest.raises(ConfigError, match="adc_sid, 5x5"):
        load_sid_study(Path("small.yaml"))


def test_text_must_come_first() -> None:
    row = STUDY["rows"]["random"] | {"tokenizer": {"vectors": ["behavior"], "learner": {"kind": "random"}}}
    Path("small.yaml").write_text(yaml.safe_dump(STUDY | {"rows": {"random": row}}))
    with pytest.raises(ConfigError, match="expected 'text' first"):
        study_fits(load_sid_study(Path("small.yaml")))


def test_one_level_additive_decoder_takes_the_mean_of_each_code() -> None:
    text = np.array([[1.0], [3.0], [10.0], [14.0]], dtype=np.float32)  # means 2 and 12, of all 7
    found = additive_decoder(text, np.array([[0], [0], [1], [1]]), (2,))
    assert found.squared_error == pytest.approx((1 + 1 + 4 + 4) / 4, rel=1e-3)
    assert found.unexplained_variance == pytest.approx(10 / (36 + 16 + 9 + 49), rel=1e-3)


def test_additive_decoder_explains_sums_of_two_codes_and_nothing_of_codes_that_say_nothing() -> None:
    codes = np.array([(first, second) for first in range(3) for second in range(4)])
    parts = np.random.default_rng(0).normal(size=(2, 4, 5))
    text = (parts[0, codes[:, 0]] + parts[1, codes[:, 1]]).astype(np.float32)
    assert additive_decoder(text, codes, (3, 4)).unexplained_variance < 1e-6
    assert additive_decoder(text, np.zeros_like(codes), (3, 4)).unexplained_variance == pytest.approx(1)


def test_own_decoder_compares_the_text_alone() -> None:
    vectors = np.array([[1, 0, 9], [1, 0, -9], [0, 1, 9], [0, 1, -9]], dtype=np.float32)  # text is the first two
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(levels=1, codebook_size=2), 0, SideInformation())
    found = own_decoder(tokenizer, vectors[:, :2], tokenizer.encode(vectors))
    assert found is not None
    assert found.unexplained_variance == pytest.approx(1), "the two clusters differ in the third column alone"
    assert found.squared_error == pytest.approx(0.5)


def test_own_decoder_of_random_codes_is_none() -> None:
    vectors = np.eye(4, dtype=np.float32)
    tokenizer = RandomCodes.fit(vectors, RandomCodesConfig(levels=1, codebook_size=2), 0, SideInformation(), None)
    assert own_decoder(tokenizer, vectors, tokenizer.encode(vectors)) is None
