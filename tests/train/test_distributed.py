"""Training on 1, 2 and 3 ranks of MPI beside one process: real processes, started by mpiexec."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tinybitvit.cli import main as cli
from tinybitvit.data import Loader
from tinybitvit.models import VisionTransformer
from tinybitvit.optim import SGD, AdamW
from tinybitvit.train import Run, Trainer
from tinybitvit.train import ranks as distributed

ROOT = Path(__file__).resolve().parents[2]
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(
    not (MPIEXEC and find_spec("mpi4py")), reason='no mpiexec or no mpi4py: pip install "tinybitvit[mpi]"'
)


def mpi(ranks, *program, folder, timeout=90):
    """(exit status, output, errors, seconds) of `mpiexec -n RANKS python -m mpi4py PROGRAM`."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, "-W", "error", "-m", "mpi4py", *map(str, program)]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]),
    }
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - start


# --- what the ranks run (this file is their program, too) -------------------------------------------------------------


def train(dtype, optimizer, group=None, steps=20, dropout=0.0, workers=1):
    """Batches of 13 rows, which no number of ranks divides, then of two, fewer than three ranks have."""
    rng = np.random.default_rng(1)
    model = VisionTransformer(8, 4, 3, 5, 16, 2, 2, bits=32, dropout=dropout, rng=rng)
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    trainer = Trainer(model, optimizer(model.parameters()), workers=workers, max_norm=1.0, rng=2, group=group)
    data, losses = np.random.default_rng(3), []
    for step in range(steps):
        n = 2 if step % 5 == 4 else 13
        x, y = data.standard_normal((n, 8, 8, 3)).astype(dtype), data.integers(0, 5, n)
        weight = data.uniform(0, 2, n).astype(dtype) if step % 3 == 1 else None
        if step == 4:  # nothing counts of what the first ranks get: they have no gradient of their own
            weight[: n // 2] = 0
        losses.append(trainer.step(x, y, weight))
        assert len(np.concatenate(trainer.outputs)) == n
    return {"losses": losses, "weights": [p.data for p in model.parameters()]}


def one_epoch(group=None):
    """An epoch of AdamW in float32: (loss, accuracy)."""
    model = VisionTransformer(8, 4, 1, 3, 16, 1, 2, bits=1.58, rng=np.random.default_rng(1))
    data = np.random.default_rng(0)
    X, y = data.standard_normal((400, 8, 8, 1), dtype="float32"), np.arange(400) % 3
    X[y == 1] += 0.3
    trainer = Trainer(model, AdamW(model.parameters(), lr=3e-3), group=group)
    found = Run(trainer, Loader(X, y, 20, rng=4)).epoch()
    return {"losses": [found["loss"], found["accuracy"]], "weights": [p.data for p in model.parameters()]}


def sgd(parameters):
    return SGD(parameters, lr=0.05, momentum=0.9)


RUNS = {
    "float64": lambda group=None: train("float64", sgd, group),
    "two workers": lambda group=None: train("float64", sgd, group, steps=8, workers=2),
    "float32": lambda group=None: train("float32", sgd, group),
    "dropout": lambda group=None: train("float32", sgd, group, dropout=0.3),
    "epoch": one_epoch,
}


def fit(**options):
    import test_resume

    return test_resume.fit(test_resume.make_data(), random_state=0, **options)


def main(what, folder):
    """On every rank: write what came out to FOLDER/RANK.json."""
    with distributed.data_parallel() as group:
        print("from rank 0 alone")
        found = {}
        if what == "runs":
            for name, run in RUNS.items():
                result = run(group)
                bits = hashlib.sha256(b"".join(w.tobytes() for w in result["weights"])).hexdigest()
                found[name] = {**result, "weights": [w.tolist() for w in result["weights"]], "bits": bits}
        elif what == "cut":  # all ranks end after the same update, as by a power failure
            import test_resume

            def count(self, **sums):
                test_resume.original(self, **sums)
                if self.trainer.optimizer.steps == 7:
                    os._exit(9)

            Run.count = count
            fit(folder=Path(folder) / "c")
        elif what == "resume":
            model = fit(folder=Path(folder) / "c")
            found = {"loss": model.history_["loss"], "bits": model.model_.state_dict()["head.weight"].tolist()}
        elif what == "raise":
            if group.rank == 1:
                raise LookupError("a fault of rank 1")
            train("float32", sgd, group)
        elif what == "differ":
            distributed.CHECK_EVERY = 5
            group.check_equal([np.ones(3)])
            group.check_equal([np.full(3, group.rank)])
    Path(folder, f"{group.rank}.json").write_text(json.dumps(found))


def found_by(ranks, what, folder):
    status, out, err, _ = mpi(ranks, __file__, what, folder, folder=folder)
    assert status == 0, err
    assert out == "from rank 0 alone\n" and err == ""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


# --- the tests --------------------------------------------------------------------------------------------------------


def largest_difference(one, other):
    return max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in zip(one, other, strict=True))


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_learn_what_one_process_learns(ranks, tmp_path):
    found = found_by(ranks, "runs", tmp_path)
    for name, run in RUNS.items():
        assert len({rank[name]["bits"] for rank in found}) == 1, f"{name}: the ranks hold different weights"
        expected, got = run(), found[0][name]
        losses = float(np.abs(np.array(expected["losses"]) - got["losses"]).max())
        weights = largest_difference(expected["weights"], got["weights"])
        print(f"{ranks} ranks, {name}: losses {losses:.1e}, weights {weights:.1e}")
        if name in ("float64", "two workers"):
            assert losses < 1e-12 and weights < 1e-12
        elif name == "float32":
            assert losses < 1e-5 and weights < 1e-5
        elif name == "epoch":
            assert losses < 1e-3
        else:
            assert losses > 0.01, "each rank draws its own numbers for dropout"


@needs_mpi
def test_a_rank_that_raises_ends_all(tmp_path):
    status, _, err, seconds = mpi(3, __file__, "raise", tmp_path, folder=tmp_path)
    assert status != 0 and "a fault of rank 1" in err and seconds < 30
    print(f"{seconds:.1f} s from start to end")


@needs_mpi
def test_different_weights_are_noticed(tmp_path):
    status, _, err, _ = mpi(2, __file__, "differ", tmp_path, folder=tmp_path)
    assert status != 0 and "the 2 ranks hold 2 different sets of weights" in err


@needs_mpi
def test_resume_with_another_number_of_ranks(tmp_path):
    status, *_ = mpi(2, __file__, "cut", tmp_path, folder=tmp_path)
    assert status != 0
    assert sorted(path.name[-14:] for path in (tmp_path / "c").iterdir()) == ["05.safetensors", "06.safetensors"]
    resumed = found_by(3, "resume", tmp_path)
    assert resumed[0] == resumed[1] == resumed[2]
    np.testing.assert_allclose(resumed[0]["loss"], fit().history_["loss"], atol=1e-3)


@needs_mpi
def test_the_command(tmp_path):
    options = ["--dim=16", "--depth=1", "--heads=2", "--epochs=2", "--train-size=100", "--test-size=40"]
    status, out, err, _ = mpi(2, "-m", "tinybitvit", "train", "digits", *options, folder=tmp_path)
    assert (status, err) == (0, "") and out.count("epoch 2/2") == 1 and out.count("written: model.safetensors") == 1
    status, _, err, _ = mpi(2, "-m", "tinybitvit", "study", folder=tmp_path)
    assert status != 0 and "a study runs in one process" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_mpiexec_without_mpi4py_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    assert cli.main(["train", "digits"]) == 2
    assert "mpiexec needs `python -m mpi4py -m tinybitvit ...`" in capsys.readouterr().err


def test_rows_are_shared_out_without_a_gap():
    group = object.__new__(distributed.Group)
    for size in range(1, 9):
        for n in range(20):
            rows = []
            for rank in range(size):
                group.rank, group.size = rank, size
                rows += range(n)[group.rows(n)]
            assert rows == list(range(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
