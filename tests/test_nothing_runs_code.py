"""Files, recipes and manifests are data: nothing in the sources unpickles, evaluates, or hands a string to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for room in ("sidrec", "data_prep", "launch") for path in (ROOT / room).rglob("*.py"))
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "os.system", "os.popen", "eval", "exec",
    "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "joblib.load", "dill.loads",
}  # fmt: skip
WANTED = {"torch.load": ("weights_only", True)}
UNWANTED = {"allow_pickle": True, "shell": True, "weights_only": False}


def unsafe(source: str) -> Iterator[str]:
    """What a source does that could run code which it reads."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        if name in FORBIDDEN:
            yield f"line {node.lineno}: {name}"
        if name in WANTED and given.get(WANTED[name][0]) is not WANTED[name][1]:
            yield f"line {node.lineno}: {name} without {WANTED[name][0]}"
        yield from (
            f"line {node.lineno}: {word}={value}" for word, value in UNWANTED.items() if given.get(word) is value
        )


def test_no_source_can_run_what_it_reads() -> None:
    assert len(SOURCES) > 150
    found = {str(path.relative_to(ROOT)): list(unsafe(path.read_text())) for path in SOURCES}
    assert {path: sentences for path, sentences in found.items() if sentences} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert list(unsafe(source))


def test_what_cannot_is_not() -> None:
    assert not list(unsafe("torch.load(path, weights_only=True)\nnp.load(path)\nmodel.eval()\nsubprocess.run(['ls'])"))
