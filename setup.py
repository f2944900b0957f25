"""Packaging of maskcl_jax: dependencies and extras, nothing else (no custom commands, no network)."""

import pathlib

from setuptools import find_packages, setup

VERSION = "0.1.0"

REQUIREMENTS = [
    "absl-py",
    "clu>=0.0.12",
    # Resizes as Pillow does, four times faster; where it has no wheel, Pillow does.
    "cykooz.resizer>=4; platform_machine == 'x86_64' or platform_machine == 'AMD64' or sys_platform == 'darwin'",
    "flax>=0.12",
    "grain>=0.2.14",  # the input pipeline; brings array_record, for data sets of TFDS in that format
    "jax>=0.10",
    "jinja2",  # the page of a report
    "ml-collections>=1.0",
    "numpy",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.31",  # the first whose managers can be opened without reading all metadata
    "pillow",
    "safetensors",
    "scikit-image",  # its wheel carries the photographs of the embedded data set
    "scikit-learn",  # likewise (china.jpg, flower.jpg)
    "scipy",
    "simplejpeg",  # decodes as Pillow does, a third faster, into memory that is used again
    "tensorboard",
]

EXTRAS = {
    # `tfds build`, which makes data sets; nothing here imports it. tensorflow-cpu: TensorFlow needs no accelerator.
    "prepare": [
        "importlib_resources; python_version < '3.12'",  # tfds reads its own metadata through it
        "tensorflow-cpu>=2.18; platform_machine != 'arm64' and platform_machine != 'aarch64'",
        "tensorflow>=2.18; platform_machine == 'arm64' or platform_machine == 'aarch64'",
        "tensorflow-datasets>=4.9.8",
    ],
    "docs": ["myst-parser>=4", "sphinx>=8", "sphinx-book-theme>=1.1.4", "sphinx-external-toc>=1.0.1"],
    "notebooks": ["ipykernel", "matplotlib", "nbclient"],
    "plots": ["matplotlib"],
    "test": ["mypy", "playwright", "pytest", "pytest-xdist", "ruff", "setuptools>=68"],
    "torch": ["torch", "timm"],
    "umap": ["umap-learn"],  # a second map of the embeddings on the page of a report
    # `log.to`: where metrics go besides the folder of a run.
    "wandb": ["wandb"],
    "trackio": ["trackio"],
    "mlflow": ["mlflow"],  # or mlflow-skinny, with a server
    "hf": ["transformers>=4.57"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
}

setup(
    name="maskcl_jax",
    version=VERSION,
    description="Self-supervised visual pre-training by masking and contrasting, in JAX/Flax.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The maskcl_jax authors",
    license="Apache-2.0",
    keywords="self-supervised learning, masked image modeling, contrastive learning, jax, flax, computer vision",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["maskcl_jax", "maskcl_jax.*"]), "maskcl_jax.configs"],
    package_dir={"maskcl_jax.configs": "configs"},
    package_data={
        "maskcl_jax": ["py.typed"],
        "maskcl_jax.verify": ["reference/*.npz"],
        "maskcl_jax.report": ["assets/*"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
