"""CURVES and FACES: generated strokes, the authors' files where they are, and what is said where they are not."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fisherlab.cli import main
from fisherlab.data import curves, faces
from fisherlab.data.pictures import strokes
from fisherlab.errors import UsageError
from fisherlab.models import autoencoder
from fisherlab.streams import generator


def test_strokes_are_where_their_points_are():
    picture = strokes(torch.tensor([[[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]])).view(28, 28)  # a diagonal, x to the right
    at = (picture > 0.5).nonzero()
    assert (at[:, 0] - at[:, 1]).abs().max() <= 1
    assert at.min() >= 2
    assert at.max() <= 25
    steep = strokes(torch.tensor([[[0.5, 0.0], [0.5, 0.5], [0.5, 1.0]]])).view(28, 28)
    assert (steep > 0.5).nonzero()[:, 1].unique().tolist() == [13, 14]


def test_generated_curves_say_so_and_are_always_the_same():
    data = curves()
    assert data.name == "curves (synthetic)"
    assert data.splits["train"].x is data.splits["train"].y
    assert 0 <= data.splits["train"].x.min() < data.splits["train"].x.max() <= 1
    points = torch.rand(30000, 3, 2, generator=generator(0, "curves"))
    assert torch.allclose(strokes(points[-10:]), data.splits["test"].x[-10:], atol=1e-6)


def test_the_authors_curves_are_read_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("FISHERLAB_DATA", str(tmp_path))
    (tmp_path / "curves").mkdir()
    rows = np.random.default_rng(0).random((5, 784))
    savemat(tmp_path / "curves" / "digs3pts_1.mat", {"bdata": rows, "bdatatest": rows[:2]})
    data = curves()
    assert data.name == "curves"
    assert torch.equal(data.splits["train"].x, torch.from_numpy(rows).float())
    assert len(data.splits["test"]) == 2
    savemat(tmp_path / "curves" / "digs3pts_1.mat", {"other": rows})
    with pytest.raises(UsageError, match=r"has no bdata with 784 pixels: expected the authors' digs3pts_1.mat"):
        curves()
    (tmp_path / "curves" / "digs3pts_1.mat").write_text("nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        curves()


def test_faces_are_the_authors_or_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FISHERLAB_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"dataset=faces needs the authors' file '.*newfaces_rot_single.mat'"):
        faces()
    assert main(["train", "dataset=faces", "model=autoencoder_faces", f"results={tmp_path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "faces").mkdir()
    pixels = np.random.default_rng(0).random((625, 80)).astype(np.float32)
    savemat(tmp_path / "faces" / "newfaces_rot_single.mat", {"newfaces_single": pixels})
    data = faces()
    assert data.likelihood == "gaussian"
    assert torch.equal(data.splits["train"].x, torch.from_numpy(pixels.T[:50].copy()))
    assert torch.equal(data.splits["test"].x, torch.from_numpy(pixels.T[60:].copy()))


@pytest.mark.parametrize(
    ("inputs", "hidden", "code", "parameters"),
    [
        (784, (1000, 500, 250), 30, 2_837_314),
        (784, (400, 200, 100, 50, 25), 6, 842_340),
        (625, (2000, 1000, 500), 30, 7_537_655),
    ],
)
def test_the_autoencoders_have_the_paper_s_parameters(inputs, hidden, code, parameters):
    model = autoencoder(inputs, inputs, hidden=hidden, code=code)
    assert sum(p.numel() for p in model.parameters()) == parameters
