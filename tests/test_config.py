"""Configuration: YAML, overrides, and what is refused."""

import dataclasses

import pytest
import yaml

from gsfields import config as configuration
from gsfields.config import Config
from gsfields.instances_config import InstancesConfig
from gsfields.language_config import LanguageConfig


def test_dump_and_load_round_trip(tmp_path):
    config = Config()
    configuration.apply(
        config, [("steps", "123"), ("width", "64"), ("means-lr", "1e-3"), ("antialiased", None)]
    )
    (tmp_path / "c.yaml").write_text(configuration.dump(config))
    assert configuration.load(tmp_path / "c.yaml") == config
    assert (config.fit.steps, config.data.width, config.optim.means_lr, config.fit.antialiased) == (
        123,
        64,
        1e-3,
        True,
    )


def test_default_recipe_lists_every_field_at_its_default():
    tree = yaml.safe_load(configuration.recipes()["default"].read_text())
    assert tree == configuration.to_dict(Config())


@pytest.mark.parametrize("name", ["default", "blender", "colmap", "demo", "lmf"])
def test_every_recipe_loads(name):
    assert isinstance(configuration.load(name), Config)


@pytest.mark.parametrize("kind", [Config, InstancesConfig, LanguageConfig])
def test_field_names_are_unique_and_documented(kind):
    names = [
        f.name for section in dataclasses.fields(kind()) for f in dataclasses.fields(section.default_factory)
    ]
    assert len(names) == len(set(names))
    text = configuration.describe(kind)
    for section in dataclasses.fields(kind()):
        for f in dataclasses.fields(section.default_factory):
            assert f.metadata["doc"] and f"--{f.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("step", "5", "there is no field 'step'; did you mean 'steps'?"),
        ("lr-means", "5", "there is no field 'lr_means'; did you mean 'means_lr'?"),
        ("fit.sede", "5", "there is no field 'fit.sede'; did you mean 'fit.seed'?"),
        ("steps", "many", "steps must be a whole number, but is 'many'"),
        ("steps", "2.5", "steps must be a whole number, but is 2.5"),
        ("steps", "true", "steps must be a whole number, but is True"),
        ("steps", "-1", "steps must be at least 0, but is -1"),
        ("ssim_weight", "2", "ssim_weight must be 0 to 1, but is 2"),
        ("ssim_weight", "nan", "ssim_weight must be 0 to 1, but is nan"),
        ("means_lr", "fast", "means_lr must be a number, but is 'fast'"),
        ("width", "big", "width must be a whole number or none, but is 'big'"),
        ("antialiased", "7", "antialiased must be true or false, but is 7"),
        ("strategy", "magic", "strategy must be one of ranked, mcmc, gsplat, none, but is 'magic'"),
        ("steps", None, "--steps needs a value"),
        ("qqq", "1", "there is no field 'qqq'$"),
    ],
)
def test_bad_overrides_get_one_sentence(name, text, sentence):
    with pytest.raises(ValueError, match="^" + sentence.replace("?", r"\?")) as caught:
        configuration.apply(Config(), [(name, text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fitt: {steps: 3}", "there is no section 'fitt'; did you mean 'fit'?"),
        ("fit: {stepps: 3}", "there is no field of section fit 'stepps'; did you mean 'steps'?"),
        ("fit: {steps: '3'}", "steps must be a whole number, but is '3'"),
        ("fit: 3", "section fit is a mapping of fields, but this is 3"),
        ("[1, 2]", "a configuration is a mapping of sections"),
        ("fit: {steps: [", "is not readable YAML"),
    ],
)
def test_bad_yaml_names_the_file_and_the_fault(tmp_path, text, sentence):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")) as caught:
        configuration.load(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)


def test_yaml_numbers_without_a_dot_and_none(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "optim: {means_lr: 1e-3, decay: 1}\ndata: {width: null}\nfit: {max_minutes: 2}\n"
    )
    config = configuration.load(tmp_path / "c.yaml")
    assert (config.optim.means_lr, config.optim.decay, config.fit.max_minutes) == (1e-3, 1.0, 2.0)
    configuration.override(config, "max_minutes", "none")
    assert config.fit.max_minutes is None


def test_unknown_recipe_lists_those_there_are():
    with pytest.raises(
        FileNotFoundError, match="no recipe or YAML file 'blendr'; the recipes are blender, colmap"
    ):
        configuration.load("blendr")


def test_the_sections_of_instances_round_trip():
    config = InstancesConfig()
    overrides = [("dim", "24"), ("objects.method", "dbscan"), ("split-share", "0.5"), ("normalise", "false")]
    configuration.apply(config, overrides)
    assert (config.field.dim, config.objects.method, config.geometry.split_share) == (24, "dbscan", 0.5)
    tree = yaml.safe_load(configuration.dump(config))
    assert tree == configuration.to_dict(config) and list(tree) == ["geometry", "field", "objects"]
    again = configuration.from_dict(tree, InstancesConfig)
    assert again == config != InstancesConfig()


def test_defaults_of_instances_are_in_their_own_range():
    default = InstancesConfig()
    assert configuration.from_dict(configuration.to_dict(default), InstancesConfig) == default


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("dims", "5", "there is no field 'dims'; did you mean 'dim'?"),
        ("means-lr", "1", "there is no field 'means_lr'"),
        ("dim", "0", "dim must be at least 1, but is 0"),
        ("steps", "-1", "steps must be at least 0, but is -1"),
        ("pixels", "1", "pixels must be at least 2, but is 1"),
        ("momentum", "1.5", "momentum must be 0 to 1, but is 1.5"),
        ("temperature", "0", "temperature must be at least 1e-06, but is 0"),
        (
            "loss",
            "triplet",
            "loss must be one of slow-fast, vanilla, associative, margin, dino, linear-assignment, but is",
        ),
        ("method", "kmeans", "method must be one of hdbscan, dbscan, meanshift, but is 'kmeans'"),
        ("normalise", "3", "normalise must be true or false, but is 3"),
        ("plan-mib", "-1", "plan_mib must be at least 0, but is -1"),
        ("samples", None, "--samples needs a value"),
    ],
)
def test_bad_overrides_of_instances(name, text, sentence):
    with pytest.raises(ValueError, match="^" + sentence.replace("?", r"\?")) as caught:
        configuration.apply(InstancesConfig(), [(name, text)])
    assert "\n" not in str(caught.value)


def test_sections_of_another_kind_are_refused():
    for tree, sentence in [
        ({"fields": {}}, "there is no section 'fields'; did you mean 'field'?"),
        ({"field": {"size": 3}}, "there is no field of section field 'size'"),
        ({"objects": [1]}, "section objects is a mapping of fields"),
    ]:
        with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
            configuration.from_dict(tree, InstancesConfig)
