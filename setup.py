"""Installation: pip install -e .    With what the tests need: pip install -e '.[test]'

The lessons run with what the core needs, and matplotlib; as pages and notebooks: '.[lessons]'
"""
from setuptools import find_packages, setup

LESSONS = ["matplotlib>=3.8", "markdown-it-py>=3,<5", "mdit-py-plugins>=0.4,<1",
           "Pygments>=2.17,<3", "latex2mathml>=3.77,<4", "nbformat>=5.9,<6", "nbclient>=0.8,<1",
           "ipykernel>=6.25,<8"]

setup(
    name="minillmclf",
    version="0.1.0",
    description="How a language model becomes a text classifier: by hand, in plain PyTorch, "
                "exact enough to use",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["minillmclf", "minillmclf.*"]), "minillmclf.checkpoints"],
    package_dir={"minillmclf.checkpoints": "checkpoints"},
    package_data={"minillmclf": ["datasets/*.csv", "datasets/*.txt", "report/style.css"],
                  "minillmclf.checkpoints": ["README.md", "mini-bert/*", "mini-llama/*",
                                             "mini-t5/*"]},
    install_requires=["torch>=2.11,<2.14", "safetensors>=0.5", "numpy", "regex",
                      "sentencepiece>=0.2", "tqdm", "bitsandbytes>=0.50,<0.51",
                      "tomli>=2; python_version < '3.11'"],
    # With upper bounds: the versions that the tests compare with (tests/live.py reads them here).
    # A newer one may refuse what these do. transformers of these versions needs Python 3.11; below
    # that nothing is compared.
    extras_require={"plots": ["matplotlib>=3.8"],
                    "lessons": LESSONS,
                    "test": [*LESSONS, "pytest", "pytest-xdist", "ruff>=0.9,<1", "hypothesis",
                             "packaging", "protobuf",
                             "tokenizers>=0.23.1,<0.24", "accelerate>=1.15,<1.16",
                             "transformers>=5.23,<5.25; python_version >= '3.11'",
                             "peft>=0.21,<0.22; python_version >= '3.11'"]},
)
