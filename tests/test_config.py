"""Configs: every mistake is one line that names the value, what was expected and what is near."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fisherlab.commands.help import comments, summary
from fisherlab.config import Source, compose, conf_dir, job, jobs, run_directory, validate
from fisherlab.errors import UsageError
from fisherlab.schema import RULES

OWN = Source()


def checked(*overrides: str, source: Source = OWN) -> object:
    cfg = compose(overrides, source)
    validate(job(cfg))
    return cfg


MISTAKES = {
    "damping=-1": ["damping=-1", "at least 0"],
    "damping=abc": ["damping=abc", "a number"],
    "optimiser=kfac": ["optimiser=kfac", "did you mean 'optimizer'?"],
    "optimizer=kfca": ["optimizer=kfca", "did you mean 'kfac'?"],
    "optimizer=": ["expected one of: ", "kfac"],
    "optimizer=null": ["optimizer=null", "expected one of: "],
    "optimizer=[kfac,sgd]": ["expected one optimizer", "-m optimizer=kfac,sgd"],
    "dataset=mnits": ["did you mean 'mnist'?"],
    "model=mpl": ["did you mean 'mlp'?"],
    "lr=0": ["lr=0", "above 0"],
    "lr=nan": ["lr=nan", "above 0"],
    "lr=true": ["lr=true", "a number"],
    "lr=": ["lr=", "a number"],
    "lr=???": ["lr", "Missing"],
    "batch_size=0": ["batch_size=0", "at least 1, or full"],
    "batch_size=1e3": ["batch_size=1000.0", "a whole number"],
    "batch_size=ful": ["did you mean 'full'?"],
    "steps=-3": ["steps=-3", "at least 1"],
    "epochs=null": ["steps=null epochs=null"],
    "seed=abc": ["seed=abc", "a whole number"],
    "dtype=float16": ["dtype=float16", "float32 or float64"],
    "device=gpu": ["device=gpu", "auto, cpu, cuda or cuda:N"],
    "threads=0": ["threads=0", "at least 1"],
    "momentum=1.5": ["momentum=1.5", "from 0 to below 1"],
    "l2=-1": ["l2=-1", "at least 0"],
    "divergence_factor=1": ["divergence_factor=1", "above 1"],
    "debug=yes": ["debug=yes", "true or false"],
    "likelihood=gauss": ["did you mean 'gaussian'?"],
    "target=labels": ["did you mean 'label'?"],
    "keep=weight": ["did you mean 'weights'?"],
    "checkpoints=3": ["checkpoints=3", "a list"],
    "checkpoints=[1,-2]": ["checkpoints=[1,-2]", "each entry a whole number"],
    "lr_schedule.name=cosin": ["did you mean 'cosine'?"],
    "lr_schedule.nmae=cosine": ["no key 'nmae' in 'lr_schedule'", "did you mean 'name'?"],
    "lr_schedule=cosine": ["write lr_schedule.name=cosine"],
    "lr_schedule=null": ["'lr_schedule' is a section"],
    "batch_schedule.until_step=0": ["at least 1, or null"],
    "optimizer.foo=1": ["no key 'foo' in 'optimizer'", "expected one of: "],
    "optimizer.knid=mc": ["did you mean 'kind'?"],
    "optimizer={knid:mc}": ["did you mean 'kind'?"],
    "optimizer=sgd damping=1": ["damping=1", "not used by optimizer 'sgd'", "kfac"],
    "model=logistic model.hidden=[10]": ["model.hidden is not used by model 'logistic'", "mlp"],
    "hidden=[10]": ["did you mean 'model.hidden'?"],
    "dataset.splits.train=100": ["dataset.splits={train: VALUE}"],
    "study=kunstner2019": ["no key 'study'"],
    "kfac": ["kfac: expected KEY=VALUE", "did you mean 'optimizer=kfac'?"],
    "=3": ["expected KEY=VALUE"],
    "lr=[": ["lr=[", "expected KEY=VALUE"],
    "lr=0.1,0.2": ["add -m", "lr=[0.1,0.2]"],
    "lr=${nothing}": ["lr", "'nothing' not found"],
    "+lr=3": ["exists already", "write lr=3"],
    "~seeds": ["no key 'seeds'", "did you mean 'seed'?"],
    "~seed": ["'seed' is missing"],
    "~optimizer": ["'optimizer' is missing"],
    "model=[1]": ["expected one model"],
    "hydra.run.dri=x": ["no key 'dri' in 'hydra.run'", "did you mean 'dir'?"],
    "hydra/launcher=nothing": ["hydra/launcher/nothing"],
    "resume=somewhere": ["resume=somewhere", "alone"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_that_helps(line):
    with pytest.raises(UsageError) as caught:
        checked(*line.split())
    message = str(caught.value)
    assert "\n" not in message
    for part in MISTAKES[line]:
        assert part in message


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"device=cuda: this machine has no CUDA device; expected auto or cpu"):
        checked("device=cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    checked("device=cuda:1")
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        checked("device=cuda:2")


@pytest.mark.parametrize(
    "line",
    [
        "", "steps=10 epochs=null", "steps=10", "batch_size=full", "seed=-1 data_seed=3", "checkpoints=[1,10]",
        "dataset.splits={train:100,test:-1}", "++optimizer.mine=1", "+mine=1", "lr_schedule.name=cosine",
        "optimizer=kfac l2=1e-3 l2_in_curvature=false", "hydra.sweep.dir=x", "checkpoint_every=null", "debug=True",
    ],
)  # fmt: skip
def test_what_makes_sense_is_accepted(line):
    checked(*line.split())


@pytest.mark.parametrize(
    "choice", [f"{group}={name}" for group in ("dataset", "model", "optimizer") for name in OWN.options(group)]
)
def test_every_shipped_part_composes(choice):
    checked(choice)


def test_every_shipped_config_says_what_it_is():
    for path in conf_dir().rglob("*.yaml"):
        assert summary(path).endswith((".", ";", ")")), path
    assert not [group for group in OWN.groups() if not OWN.options(group)]


def test_every_key_of_a_run_has_a_rule_and_a_comment():
    cfg = OmegaConf.load(conf_dir() / "train.yaml")
    said = comments(conf_dir() / "train.yaml")
    keys = {key for key in cfg if key not in ("defaults", "hydra") and not OmegaConf.is_dict(cfg[key])}
    keys |= {f"{section}.{key}" for section in ("lr_schedule", "batch_schedule") for key in cfg[section]}
    assert keys <= set(said)
    assert keys == set(RULES) - {"dataset", "model", "optimizer"}


def test_a_run_directory_is_the_users_or_nobodys():
    assert run_directory(compose()) is None
    assert run_directory(compose(["hydra.run.dir=some/where"])) == Path("some/where")


def test_hydra_values_resolve_without_hydra_main():
    assert job(compose(["results=${hydra:runtime.cwd}/out"])).results == f"{Path.cwd()}/out"


def test_a_sweep_expands_to_jobs():
    assert jobs(["lr=0.1,0.2", "seed=range(2)", "optimizer=glob(s*)"]) == [
        ["lr=0.1", "seed=0", "optimizer=sgd"],
        ["lr=0.1", "seed=1", "optimizer=sgd"],
        ["lr=0.2", "seed=0", "optimizer=sgd"],
        ["lr=0.2", "seed=1", "optimizer=sgd"],
    ]
    assert jobs(["optimizer=glob(z*)"]) == []


@pytest.fixture
def folder(tmp_path) -> Path:
    """A user's own configs, in a folder whose name needs quoting."""
    mine = tmp_path / "it's mine, really"
    (mine / "model").mkdir(parents=True)
    (mine / "optimizer").mkdir()
    (mine / "model" / "tiny.yaml").write_text("# A tiny net.\n_target_: torch.nn.Linear\nbias: false  # none\n")
    (mine / "start.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    return mine


def test_users_own_configs(folder):
    cfg = checked("model=tiny", source=Source(folder, "start"))
    assert cfg.seed == 7
    assert cfg.model == {"_target_": "torch.nn.Linear", "bias": False}
    assert checked("model=tiny", source=Source(folder)).seed == 0


def test_mistakes_in_users_own_configs(folder):
    def said(*overrides: str, source: Source | None = None) -> str:
        with pytest.raises(UsageError) as caught:
            checked(*overrides, source=source or Source(folder))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (folder / "optimizer" / "broken.yaml").write_text("# @package _global_\nlr: [1\noptimizer: {\n")
    (folder / "optimizer" / "latin.yaml").write_bytes(b"# \xff\nlr: 1\n")
    (folder / "optimizer" / "empty.yaml").write_text("")
    assert "broken.yaml, line 3: not YAML" in said("optimizer=broken")
    assert "latin.yaml: 'utf-8' codec" in said("optimizer=latin")
    assert "optimizer" in said("optimizer=empty")
    # A broken neighbour must not hide what is wrong with the one that was chosen.
    assert "did you mean 'kfac'?" in said("optimizer=kfca")
    assert "not used by optimizer 'sgd'" in said("optimizer=sgd", "damping=1")
    assert "did you mean 'start'?" in said(source=Source(folder, "stat"))
    assert "no such folder" in said(source=Source(folder / "nowhere"))
    (folder / "model" / "mlp.yaml").write_text("_target_: torch.nn.Linear\n")
    assert "fisherlab has a model/mlp.yaml of its own" in said()


def test_conf_dir_is_absolute():
    assert conf_dir().is_absolute()
    assert (conf_dir() / "train.yaml").exists()
