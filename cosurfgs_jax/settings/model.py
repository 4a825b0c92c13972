"""Settings of the model: surfels, how they are drawn, and the exposure of photographs."""

import dataclasses

from cosurfgs_jax.settings.declaration import (
    SettingsGroup,
    at_least,
    fraction,
    not_negative,
    number,
    positive,
    setting,
)


@dataclasses.dataclass
class SurfelSettings(SettingsGroup, name="surfels"):
    """The model's arrays."""

    capacity: int = setting(
        0,
        "Maximum number of surfels, of which a block gets the fraction that it has of all images' "
        "pixels; 0 means from the data: one for every 32 pixels that they show of the place, and "
        "in blocks so many more as their compression (lmc.prune_ratio) prunes.",
        not_negative("0 (from the data) or a positive number"),
        is_main=True,
    )
    sh_degree: int = setting(
        3,
        "Degree of the spherical harmonics of the colours.",
        number("0 to 3", at_least=0, at_most=3),
    )
    init_opacity: float = setting(
        0.1,
        "Opacity of surfels made from the point cloud.",
        number("a number in (0, 1)", above=0, below=1),
    )
    fill_gaps: bool = setting(
        True,
        "Whether the first surfels also lie on the planes between the cloud's points where there "
        "are none for a long way, as on plain ground; not where photographs have masks.",
    )


@dataclasses.dataclass
class RasterSettings(SettingsGroup, name="raster"):
    """How surfels are drawn."""

    backend: str = setting(
        "",
        "Rasterizer backend, by its name in raster/backends.py: cpu, cuda, tpu and portable are "
        "for use, reference is the definition; empty means the best for the device. A name is "
        "checked where it is first used.",
    )
    near: float = setting(
        0.01,
        "Distance of the near plane, as a fraction of the scene scale.",
        positive("a positive fraction of the scene scale"),
    )
    background: float = setting(
        0.0,
        "Grey level behind the surfels, from 0 (black) to 1 (white).",
        fraction("a grey level, 0 to 1"),
    )


@dataclasses.dataclass
class AppearanceSettings(SettingsGroup, name="appearance"):
    """The exposure model: one embedding per photograph and a small network."""

    enabled: bool = setting(
        True, "Whether the exposure of each photograph is learned.", is_main=True
    )
    embedding_dim: int = setting(16, "Length of the embedding of a photograph.", at_least(1))
    hidden_dim: int = setting(32, "Width of the hidden layer of the exposure network.", at_least(1))
    learning_rate: float = setting(1e-3, "Learning rate of embeddings and network.", positive())
    identity_weight: float = setting(
        0.01, "Weight that pulls the mean colour transform towards the identity.", not_negative()
    )
    start: float = setting(
        0.03,
        "Where the exposure model begins, as a fraction of train.steps; earlier it would learn the "
        "faults of an unfinished model.",
        fraction("a fraction of the steps, 0 to 1"),
    )
